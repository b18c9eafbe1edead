"""Pure functions that gather a model's attention masks to the tokens that are still there.

The model makes its masks for all S tokens of the pass and all positions that it believes the cache
holds. After a cut, a layer has m queries and K keys. Kernels differ in the masks that they get
(`kernels`), so there is one function for each kind. All of them follow the same rule: the entry
for query q and key k is the model's own entry for the place of q and the position of k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from tpcal.plans.executor.kernels import FlashLayer
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.executor.transfers import row_numbers


def layer_mask(
    mask: Tensor | None, survivors: Survivors, held: Held, length: int
) -> Tensor | None:
    """The model's own attention mask, gathered to (surviving queries) x (keys the layer holds).

    The entry for query q and key k is mask[place of q, position of k]: the model's own causal
    order, windows, image blocks and padding hold on for the tokens that are left. Keys that
    attention counts several times make the mask additive.

    Args:
        mask: [1 or B, 1, S, M] bool or additive, for the last M positions seen, or for the first M
            if fewer were seen; None if causal order is the only rule. Keys before those positions
            are out of a sliding window.
        survivors: The queries.
        held: The keys, the new ones included.
        length: Number of tokens of the pass, S.

    Returns:
        [B, 1, m, K], or None if causal order among the columns is still the only rule.
    """
    # Without a mask, kernels compare columns. That equals the order of positions in two cases: one
    # query, which sees all keys, and a prompt without earlier keys, whose queries are its keys.
    key_valid, added = held.mask(), held.added()
    if mask is None and key_valid is None:
        n_queries = _n_queries(survivors, length)
        if n_queries == 1:
            return None if added is None else added[:, None, None]
        if n_queries == held.n_held and added is None:
            return None
    positions = held.positions()  # [B, K]
    n_rows, places = positions.shape[0], survivors.places
    if mask is None:
        # Causal order by position. Queries see the kept keys of an earlier turn and those of
        # their own turn up to themselves.
        gathered = positions[:, None, :] <= _queries(survivors, held, length)[:, :, None]
    else:
        # The mask's column 0 stands for position n_seen - M, or for 0 if a static cache has room
        # for positions not seen yet. Keys before it get a negative column: it is clamped for the
        # gather, and the key is hidden below.
        gathered = mask.expand(n_rows, *mask.shape[1:])[:, 0]
        first, columns = held.n_seen - mask.shape[-1], positions
        if first > 0:
            columns = positions - first
            in_sight = columns >= 0
            key_valid = in_sight if key_valid is None else key_valid & in_sight
            columns = columns.clamp(min=0)
        wanted = columns[:, None, :]  # [B, 1, K]
        if places is None:  # one kernel instead of four: each step of decoding comes here
            gathered = gathered.gather(2, wanted.expand(-1, length, -1))
        else:
            rows = row_numbers(n_rows, positions.device)[:, None]
            gathered = gathered[rows, places[:, :, None], wanted]  # [B, m, K]
    # No query may see filler, whatever the position it carries.
    if key_valid is not None:
        hidden = 0 if gathered.dtype == torch.bool else torch.finfo(gathered.dtype).min
        gathered = gathered.masked_fill(~key_valid[:, None, :], hidden)
        gathered = _filler_sees_itself(gathered, survivors.valid)
    if added is not None:
        is_bool = gathered.dtype == torch.bool
        gathered = _counting(gathered, added) if is_bool else gathered + added[:, None]
    return gathered[:, None]


def block_mask(
    mask: BlockMask, survivors: Survivors, held: Held, length: int
) -> BlockMask | Tensor:
    """The model's own block mask for flex attention, for the queries and keys that are left.

    Args:
        mask: The mask of S queries and the last M positions seen.
        survivors: The queries.
        held: The keys, the new ones included.
        length: Number of tokens of the pass, S.

    Returns:
        A block mask, or where attention counts keys several times the [B, 1, m, K] numbers that
        flex attention adds to the scores.
    """
    positions, queries = held.positions(), _queries(survivors, held, length)
    places = queries - (held.n_seen - length)  # [B, m]
    columns = positions - (held.n_seen - mask.shape[-1])  # [B, K]
    known, given = columns >= 0, mask.mask_mod
    valid = held.mask()
    if valid is not None:
        known = known & valid
    columns = columns.clamp(min=0)
    n_rows, n_queries, n_keys = *places.shape, columns.shape[1]

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Filler sees at least itself, as in `_filler_sees_itself`; other tokens do so anyway.
        itself = positions[row, key] == queries[row, query]
        return given(row, head, places[row, query], columns[row, key]) & known[row, key] | itself

    shape, added = (n_rows, None, n_queries, n_keys), held.added()
    if added is None:
        return create_block_mask(sees, *shape, device=positions.device)
    seen = create_mask(sees, *shape, device=positions.device)[:, 0]
    return _counting(seen, added)[:, None]


def flash_mask(
    mask: Tensor | None, survivors: Survivors, held: Held, length: int, layer: FlashLayer
) -> Tensor | None:
    """The mask of a layer whose flash kernel sees the causal order of columns by itself.

    Args:
        mask: [B, M] bool of the last M positions seen, True at real tokens; None without padding.
        survivors: The queries.
        held: The keys, the new ones included.
        length: Number of tokens of the pass, S.
        layer: The layer.

    Returns:
        [B, K] bool, True at keys that a query may see; None if those are all. Where the kernel
        would show a query other keys: [B, 1, m, K] bool, for another kernel
        (`attention_reader.attended`). That is so if a window of columns is wider than the layer's
        window of positions, or if the queries are not the last of the keys. Where attention counts
        keys several times: [B, 1, m, K] numbers to add to the scores, likewise.
    """
    positions, real = held.positions(), held.mask()
    if mask is not None:
        columns = positions - (held.n_seen - mask.shape[-1])
        padded = mask.gather(1, columns.clamp(min=0)).bool() & (columns >= 0)
        real = padded if real is None else real & padded
    recent = length == 1 and not held.index.shape[1] and held.n_held <= (layer.window or 0)
    windowed = layer.window is not None and held.n_seen > layer.window and not recent
    queries, added = _queries(survivors, held, length), held.added()
    by_columns = not windowed and (layer.aligned or not layer.causal)
    if added is None and (queries.shape[1] == 1 or by_columns):
        if not windowed or layer.window is None:
            return real
        in_sight = positions > queries - layer.window
        return in_sight if real is None else real & in_sight
    ahead = queries[:, :, None] - positions[:, None, :]  # [B, m, K]
    sees = _in_order(ahead, layer.window if windowed else None, layer.causal)
    if real is not None:
        sees &= real[:, None, :]
    sees |= ahead == 0  # filler and padding see at least themselves
    return (sees if added is None else _counting(sees, added))[:, None]


@dataclass(frozen=True)
class FlashOrder:
    """What a query sees through a flash kernel: real columns up to its own, within a window."""

    real: Tensor | None
    """[B, K] bool; None if all columns are real."""
    window: int | None
    """Number of real columns, its own included; None without a window."""
    causal: bool = True
    """Whether a query sees nothing after itself."""


Mask = Tensor | BlockMask | FlashOrder | None
"""A mask of a kernel; None if causal order is the only rule."""


def mask_rows(mask: Mask, columns: Tensor, n_new: int, n_keys: int) -> Tensor:
    """[B or 1, R, K] rows of a layer's mask, bool or additive.

    Args:
        mask: The mask of the m new tokens, which are the last of the K keys.
        columns: [B, R] columns of queries among the new tokens.
        n_new: Number of new tokens, m.
        n_keys: Number of keys, K.
    """
    index = row_numbers(columns.shape[0], columns.device)
    if isinstance(mask, Tensor):
        return mask.expand(columns.shape[0], *mask.shape[1:])[:, 0][index, columns]
    keys = torch.arange(n_keys, device=columns.device)
    if isinstance(mask, BlockMask):
        rows, head = index[..., None], torch.zeros_like(index[..., None])
        return mask.mask_mod(rows, head, columns[..., None], keys[None, None])
    # The query in column c is key c + K - m and sees the keys up to itself.
    order = FlashOrder(None, None) if mask is None else mask
    own = columns + (n_keys - n_new)
    if order.real is None:
        return _in_order(own[..., None] - keys, order.window, order.causal)
    # The kernel takes padding out, so its window counts real columns only.
    ordinal = order.real.long().cumsum(dim=1)
    ahead = ordinal.gather(1, own)[..., None] - ordinal[:, None]
    return _in_order(ahead, order.window, order.causal) & order.real[:, None]


def last_row(mask: Mask, query: Tensor, n_keys: int) -> Tensor | None:
    """[1 or B, 1, K] row of a layer's mask for the last query; None if it sees all keys.

    Args:
        mask: As in `mask_rows`.
        query: [B, H, m, d].
        n_keys: Number of keys, K.
    """
    if isinstance(mask, Tensor):
        return mask[:, 0, -1:]
    if mask is None or (
        isinstance(mask, FlashOrder) and mask.real is None and mask.window is None
    ):
        return None
    last = torch.full((query.shape[0], 1), query.shape[2] - 1, device=query.device)
    return mask_rows(mask, last, query.shape[2], n_keys)


def _counting(sees: Tensor, added: Tensor) -> Tensor:
    """[B, m, K] what is added to the scores of keys that are counted several times.

    Args:
        sees: [B, m, K] bool, the keys that each query sees.
        added: [B, K], in the dtype of the states, as kernels ask for it.
    """
    return torch.where(sees, added[:, None], torch.finfo(added.dtype).min)


def _in_order(ahead: Tensor, window: int | None, causal: bool) -> Tensor:
    """Whether queries see keys that they are so many places ahead of."""
    sees = ahead >= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    return sees if window is None else sees & (ahead.abs() < window)


def _n_queries(survivors: Survivors, length: int) -> int:
    return length if survivors.places is None else survivors.places.shape[1]


def _queries(survivors: Survivors, held: Held, length: int) -> Tensor:
    """[B, m] position of each query: place p of this pass has position n_seen - S + p."""
    places = survivors.places
    if places is None:
        places = torch.arange(length, device=held.index.device)
        places = places.expand(held.index.shape[0], -1)
    return places + (held.n_seen - length)


def _filler_sees_itself(mask: Tensor, valid: Tensor | None) -> Tensor:
    """Gives each filler query one key, because some kernels return nan for a softmax over none."""
    if valid is None:
        return mask
    itself = _diagonal(mask) & ~valid[:, :, None]
    return mask.masked_fill(itself, 1 if mask.dtype == torch.bool else 0)


def _diagonal(mask: Tensor) -> Tensor:
    """[m, K] bool, True where a query of a mask [B, m, K] meets its own key."""
    # The new keys are the last m of K, so query i is key K - m + i: a diagonal at the right edge.
    n_queries, n_keys = mask.shape[1:]
    own = torch.eye(n_queries, dtype=torch.bool, device=mask.device)
    return torch.nn.functional.pad(own, (n_keys - n_queries, 0))
