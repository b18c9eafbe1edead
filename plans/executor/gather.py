"""Pure functions that gather the arguments of a layer call to the tokens that are still there.

The model prepares states, rotary tables and masks for all S tokens of the pass, by place. A layer
after a cut gets m columns. Every tensor by token is therefore gathered by the survivors' places:

    states [B, S, D]            ->  [B, m, D]       the states of the survivors
    cos, sin [1 or B, S, d]     ->  [B, m, d]       each survivor keeps its own rotation
    mask [1 or B, 1, S, M]      ->  [B, 1, m, K]    rows by place, columns by the positions held

Nothing is computed again, so a survivor keeps its position and sees what it saw before, without
the tokens that left. Places and columns are explained in `survivors`, positions in `kv_columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from tpcal.plans.executor import compat
from tpcal.plans.executor.kernels import FlashLayer
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.masks import block_mask, flash_mask, layer_mask
from tpcal.plans.executor.survivors import Survivors, columns_of
from tpcal.plans.executor.transfers import row_numbers

_SPECIAL = ("attention_mask", *compat.CACHE_NAMES, "hidden_states")


def take_columns(states: Tensor, columns: Tensor) -> Tensor:
    """[B, m, ...] from [1 or B, S, ...] by [B, m] columns, on the device of the states."""
    columns = columns.to(states.device)
    # One row needs no row index: index_select is the faster kernel.
    if columns.shape[0] == 1:
        return states.index_select(1, columns[0])
    states = states.expand(columns.shape[0], *states.shape[1:])
    return states[row_numbers(columns.shape[0], columns.device), columns]


def by_rank(table: Tensor, index: Tensor, valid: Tensor | None, filler: float = -1) -> Tensor:
    """[B, N, C] rows of a table [B, N0, C] at the ranks [B, N].

    Args:
        table: [B, N0, C].
        index: [B, N] ranks; -1 on filler.
        valid: [B, N] bool, False on filler; None if there is no filler.
        filler: The value on filler.
    """
    if valid is None:
        return take_columns(table, index)
    return take_columns(table, index.clamp(min=0)).masked_fill(~valid[..., None], filler)


def flat_keys(keys: Tensor) -> Tensor:
    """[B, m, E] keys of all heads side by side, from [B, Hkv, m, d]."""
    return keys.transpose(1, 2).flatten(2)


def with_states(
    hidden: Tensor, visual: Tensor, states: Tensor, stays: Tensor, n_columns: int
) -> Tensor:
    """[B, m, D] states in which the visual tokens have the given states.

    Args:
        hidden: [B, m, D] states after the cut.
        visual: [B, m] bool, their visual columns.
        states: [B, N, D] states of the visual tokens before the cut.
        stays: [B, N] bool, which of those are the visual columns of ``hidden``, in order.
        n_columns: Largest number of visual tokens that a row keeps.
    """
    # Column j of a row's visual columns gets state j of those that stay: both are in order. Filler
    # writes a token's own state back, so it changes nothing.
    columns, valid = columns_of(visual, n_columns)
    taken = take_columns(states, columns_of(stays, n_columns)[0])
    taken = torch.where(valid[..., None], taken, take_columns(hidden, columns))
    return hidden.scatter(1, columns[..., None].expand(-1, -1, hidden.shape[2]), taken)


def scattered(states: Tensor, survivors: Survivors, length: int) -> Tensor:
    """[B, length, D] with the states [B, m, D] at their places and zeros where tokens left."""
    if survivors.places is None:
        return states
    # Filler has a place of its own behind the end, which is cut off: written to a real place, it
    # could overwrite a token.
    places, width = survivors.places, length
    if survivors.valid is not None:
        places, width = torch.where(survivors.valid, places, length), length + 1
    full = states.new_zeros(states.shape[0], width, states.shape[2])
    rows = row_numbers(places.shape[0], places.device)
    return full.index_put_((rows, places), states)[:, :length]


class Gatherer:
    """Gathers the arguments of layer calls, each tensor once for all layers between two cuts.

    A model hands the same rotary tables and masks to all its layers. Results are therefore kept by
    the identity of what they were made from. Each entry also holds those objects, so that no other
    object can get the same identity while the entry lives.
    """

    def __init__(self) -> None:
        self._memo: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def arguments(
        self,
        arguments: Mapping[str, Any],
        survivors: Survivors,
        held: Held,
        length: int,
        flash: FlashLayer | None = None,
    ) -> dict[str, Any]:
        """The keyword arguments of a layer call, gathered to the surviving tokens.

        Args:
            arguments: As the model passes them. Every tensor of shape [1 or B, S, ...] holds one
                entry per token and is gathered.
            survivors: The queries of the call.
            held: The keys of the call, the new ones included.
            length: Number of tokens of the pass, S.
            flash: The layer, if its kernel is a flash kernel.
        """
        gathered = {
            key: value if key in _SPECIAL else self._value(value, survivors, length)
            for key, value in arguments.items()
        }
        mask = arguments.get("attention_mask")
        key = id(mask), id(survivors), id(held), flash
        if key not in self._memo:
            made = _mask(mask, survivors, held, length, flash)
            self._memo[key] = made, mask, survivors, held
        gathered["attention_mask"] = self._memo[key][0]
        if flash is not None and gathered.get("position_embeddings") is not None:
            # Flash attention takes positions with gaps for several sequences in one row. The
            # rotary tables are all that the layer itself needs of the positions.
            gathered["position_ids"] = None
        return gathered

    def values(
        self, values: tuple[Any, ...], survivors: Survivors, length: int
    ) -> tuple[Any, ...]:
        """Further positional arguments of the call, gathered in the same way."""
        return tuple(self._value(value, survivors, length) for value in values)

    def _value(self, value: Any, survivors: Survivors, length: int) -> Any:
        if survivors.places is None:
            return value
        if isinstance(value, tuple | list):
            return type(value)(self._value(item, survivors, length) for item in value)
        by_axis = compat.by_axis(value, length)
        if not _by_token(value[0] if by_axis else value, survivors.places.shape[0], length):
            return value
        key = id(value), id(survivors)
        if key not in self._memo:
            tables = value if by_axis else (value,)
            made = [take_columns(table, survivors.places) for table in tables]
            self._memo[key] = torch.stack(made) if by_axis else made[0], value, survivors
        return self._memo[key][0]


def _by_token(value: Any, n_rows: int, length: int) -> bool:
    """Whether this is a tensor with one entry per token, [1 or B, S, ...]."""
    if not isinstance(value, Tensor) or value.ndim < 2:
        return False
    return value.shape[0] in (1, n_rows) and value.shape[1] == length


def _mask(
    mask: Any, survivors: Survivors, held: Held, length: int, flash: FlashLayer | None
) -> Any:
    """The mask of a layer call, for the kernel that the model's own mask was made for."""
    if isinstance(mask, Tensor):
        survivors, held = survivors.to(mask.device), held.to(mask.device)
    if flash is not None:
        return flash_mask(mask, survivors, held, length, flash)
    if isinstance(mask, BlockMask):
        return block_mask(mask, survivors, held, length)
    return layer_mask(mask, survivors, held, length)
