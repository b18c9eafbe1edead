"""Pure functions that gather a layer call's arguments to the surviving tokens.

Coordinates: a *place* counts the tokens of one forward pass as the model sees them (0..S-1); a
*column* counts the tokens a layer physically gets. Before the first cut both are the same.
Survivors are right-aligned: rows with fewer tokens carry filler on the left, so that the last
column is the last token of every row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.attention_reader import Request
from tpcal.plans.executor.cache import Held, right_aligned

_SPECIAL = ("attention_mask", "past_key_values", "hidden_states")


@dataclass(frozen=True)
class ViewGrid:
    """Places of one view's visual tokens: an image, its tiled part, or one step of a video."""

    row: Tensor
    """[n] int64."""
    col: Tensor
    """[n] int64; tokens without area (newline, class) stand in the extra columns."""
    n_rows: int
    n_cols: int
    """Extra columns included."""
    n_extra_cols: int = 0
    """Last columns, of tokens that cover no pixels."""
    image: int = 0
    """Which image or video of the prompt this is a view of, in order of appearance."""
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """x0, y0, x1, y1: the part of the image that the cells cover, in fractions of its sides."""
    time: int = 0
    """Step of a video."""

    def boxes(self) -> Tensor:
        """[n, 4] x0, y0, x1, y1 of each token in fractions of the image; nan without area."""
        n_cols = self.n_cols - self.n_extra_cols
        x0, y0, x1, y1 = self.region
        cell = torch.stack((self.col, self.row), dim=-1).double()  # [n, 2]
        size = cell.new_tensor([(x1 - x0) / n_cols, (y1 - y0) / self.n_rows])
        corner = cell.new_tensor([x0, y0]) + cell * size
        boxes = torch.cat((corner, corner + size), dim=-1)
        return boxes.masked_fill((self.col >= n_cols)[:, None], torch.nan)


@dataclass(frozen=True)
class PromptTokens:
    """What one forward pass sees; all tensors by place."""

    visual: Tensor
    """[B, S] bool."""
    real: Tensor
    """[B, S] bool, False on padding."""
    last: Tensor
    """[B] int64 place of the last prompt token: the query of attention scores."""
    text: Tensor
    """[B, S] bool, text after the row's first visual token, up to ``last``."""
    rank: Tensor
    """[B, S] int64 rank of a visual token among the row's visual tokens; -1 elsewhere."""
    grids: tuple[tuple[ViewGrid, ...], ...]
    """The images of each row."""
    n_visual: tuple[int, ...]
    n_real: tuple[int, ...]
    n_query_text: int
    """Most ``text`` tokens of a row."""
    text_before_visual: bool
    """A ``text`` token stands before a visual one, so that visual tokens can attend to text."""
    vision: Tensor | None = None
    """[B, N, 1 + E] what the vision tower showed of each visual token, by rank; see
    tpcal.plans.images.vision_reader. None where no selector needs it."""

    @property
    def n_rows(self) -> int:
        return self.visual.shape[0]

    @property
    def length(self) -> int:
        return self.visual.shape[1]


def read_prompt(
    visual: Tensor, mask: Tensor | None, prompt_length: Tensor | None = None
) -> PromptTokens:
    """The prompt without its grids; one transfer from the device.

    Args:
        visual: [B, S] bool.
        mask: [B, >= S] 2-D attention mask, 0 on padding, for all tokens seen so far; None without
            padding.
        prompt_length: [B] real tokens up to the end of the prompt; None where everything is
            prompt.

    Raises:
        UsageError: A row has no token, or its prompt ends with a visual token, so no text can ask
            for it.
    """
    real = torch.ones_like(visual) if mask is None else mask[:, -visual.shape[1] :].bool()
    visual = visual & real
    if prompt_length is None:
        prompt_length = real.sum(dim=1)
    place = torch.arange(visual.shape[1], device=visual.device)
    ordinal = real.cumsum(dim=1)
    is_last = real & (ordinal == prompt_length.to(real.device)[:, None])
    last = is_last.to(torch.uint8).argmax(dim=1)
    rank = torch.where(visual, visual.cumsum(dim=1) - 1, -1)
    text = real & ~visual & (visual.cumsum(dim=1) > 0) & (place <= last[:, None])
    after_text = visual & (text.cumsum(dim=1) > 0)
    ends_visual = (visual & (place == last[:, None])).any(dim=1)
    counts = [
        visual.sum(1),
        real.sum(1),
        text.sum(1),
        after_text.any(1),
        ends_visual,
        is_last.any(1),
    ]
    n_visual, n_real, n_text, mixed, ends, found = torch.stack([c.long() for c in counts]).tolist()
    if any(n > 0 and (end or not has) for n, end, has in zip(n_visual, ends, found, strict=True)):
        raise UsageError(
            "A prompt with images must end with a text token, as text decides which visual tokens "
            "stay; got one that ends with a visual token (chunked prefill does this: set "
            "prefill_chunk_size=None)."
        )
    return PromptTokens(
        visual, real, last, text, rank, (), tuple(n_visual), tuple(n_real), max(n_text), any(mixed)
    )


@dataclass(frozen=True)
class Survivors:
    """The tokens of a forward pass that are still there."""

    places: Tensor | None
    """[B, m] int64 place of each column, ascending where valid; None before the first cut."""
    valid: Tensor | None
    """[B, m] False on filler; None where there is none."""
    n_visual: tuple[int, ...]
    """Visual tokens alive in each row."""

    def take(self, by_place: Tensor) -> Tensor:
        """[B, m] bool: a mask by place becomes one by column, False on filler."""
        if self.places is None:
            return by_place
        taken = by_place.gather(1, self.places)
        return taken if self.valid is None else taken & self.valid


def columns_of(mask: Tensor, n_columns: int) -> tuple[Tensor, Tensor]:
    """The columns where ``mask`` [B, m] is True, in order, padded on the right.

    Returns:
        [B, n_columns] int64 columns, and [B, n_columns] bool, False on filler.
    """
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :n_columns]
    return order, mask.gather(1, order)


def ranks(prompt: PromptTokens, survivors: Survivors, columns: Tensor, valid: Tensor) -> Tensor:
    """[B, N] int64 original rank of the visual tokens in ``columns``; -1 on filler."""
    rank = prompt.rank
    if survivors.places is not None:
        rank = rank.gather(1, survivors.places)
    return rank.gather(1, columns).masked_fill(~valid, -1)


def grid_table(prompt: PromptTokens) -> Tensor:
    """[B, N0, 6] view, grid row, column, shape and cover of every rank, on the CPU."""
    table = torch.full((prompt.n_rows, max(prompt.n_visual), 6), -1, dtype=torch.int64)
    for b, grids in enumerate(prompt.grids):
        start = 0
        for number, grid in enumerate(grids):
            part = table[b, start : start + len(grid.row)]
            part[:, 0], part[:, 1], part[:, 2] = number, grid.row, grid.col
            part[:, 3], part[:, 4] = grid.n_rows, grid.n_cols
            part[:, 5] = grid.col < grid.n_cols - grid.n_extra_cols
            start += len(grid.row)
    return table


def by_rank(table: Tensor, index: Tensor, filler: float = -1) -> Tensor:
    """[B, N, C] rows of a table [B, N0, C] at the ranks [B, N]; ``filler`` where they are -1."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None]
    return table[rows, index.clamp(min=0)].masked_fill((index < 0)[..., None], filler)


def flat_keys(keys: Tensor) -> Tensor:
    """[B, m, E] from [B, Hkv, m, d]."""
    return keys.transpose(1, 2).flatten(2)


def attention_request(
    prompt: PromptTokens, survivors: Survivors, *, text: bool, visual_queries: bool
) -> Request:
    """What to read at an attention module.

    Args:
        prompt: The pass.
        survivors: Tokens the module sees.
        text: Read what the text tokens look at, and the attention mass of it.
        visual_queries: Measure the mass in both directions (zero without work where no text
            precedes a visual token).
    """
    last = prompt.last
    if survivors.places is not None:  # the last token never leaves
        last = (survivors.places == last[:, None]).to(torch.uint8).argmax(dim=1)
    if not text:
        return Request(last)
    return Request(
        last,
        columns_of(survivors.take(prompt.text), prompt.n_query_text),
        columns_of(survivors.take(prompt.visual), max(survivors.n_visual)),
        visual_queries and prompt.text_before_visual,
    )


def narrowed(
    prompt: PromptTokens,
    survivors: Survivors,
    columns: Tensor,
    stays: Tensor,
    n_visual: Sequence[int],
) -> tuple[Survivors, Tensor]:
    """The survivors of a cut. Padding of the prompt leaves with the first one.

    Args:
        prompt: The pass.
        survivors: Before the cut.
        columns: [B, N] columns of the visual tokens alive.
        stays: [B, N] True where such a token stays.
        n_visual: True entries of each row of ``stays``.

    Returns:
        The survivors, and [B, m'] int64 columns to gather from the states before the cut.
    """
    text = survivors.take(prompt.real & ~prompt.visual)
    keep = text | torch.zeros_like(text).scatter(1, columns, stays)
    lengths = [
        real - visual + kept
        for real, visual, kept in zip(prompt.n_real, prompt.n_visual, n_visual, strict=True)
    ]
    order = right_aligned(keep, max(lengths))
    valid = None if min(lengths) == max(lengths) else keep.gather(1, order)
    places = order if survivors.places is None else survivors.places.gather(1, order)
    return Survivors(places, valid, tuple(n_visual)), order


def take_columns(states: Tensor, columns: Tensor) -> Tensor:
    """[B, m, ...] from [1 or B, S, ...] by [B, m] columns."""
    if columns.shape[0] == 1:
        return states.index_select(1, columns[0])
    states = states.expand(columns.shape[0], *states.shape[1:])
    return states[torch.arange(columns.shape[0], device=columns.device)[:, None], columns]


def with_states(
    hidden: Tensor, visual: Tensor, states: Tensor, stays: Tensor, n_columns: int
) -> Tensor:
    """[B, m, D] states in which those of the visual tokens are others.

    Args:
        hidden: [B, m, D].
        visual: [B, m] bool, its visual columns.
        states: [B, N, D] of more tokens.
        stays: [B, N] bool, which of these the visual columns hold, in the same order.
        n_columns: Most visual tokens of a row.
    """
    columns, valid = columns_of(visual, n_columns)
    taken = take_columns(states, columns_of(stays, n_columns)[0])
    taken = torch.where(valid[..., None], taken, take_columns(hidden, columns))
    return hidden.scatter(1, columns[..., None].expand(-1, -1, hidden.shape[2]), taken)


def scattered(states: Tensor, survivors: Survivors, length: int) -> Tensor:
    """[B, length, D] with the states [B, m, D] at their places and zeros where tokens left."""
    if survivors.places is None:
        return states
    places, width = survivors.places, length
    if survivors.valid is not None:
        places, width = torch.where(survivors.valid, places, length), length + 1  # behind the end
    full = states.new_zeros(states.shape[0], width, states.shape[2])
    rows = torch.arange(places.shape[0], device=places.device)[:, None]
    return full.index_put_((rows, places), states)[:, :length]


class Gatherer:
    """Gathers the arguments of layer calls, each tensor once for all layers of a stage."""

    def __init__(self) -> None:
        self._memo: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def arguments(
        self, arguments: Mapping[str, Any], survivors: Survivors, held: Held, length: int
    ) -> dict[str, Any]:
        """The keyword arguments of a layer call, gathered to the surviving tokens.

        Args:
            arguments: As the model passes them. Every tensor of shape [1 or B, S, ...] goes by
                token.
            survivors: Queries of the call.
            held: Keys of the call, the new ones included.
            length: S.
        """
        gathered = {
            key: value if key in _SPECIAL else self._value(value, survivors, length)
            for key, value in arguments.items()
        }
        mask = arguments.get("attention_mask")
        key = id(mask), id(survivors), id(held)
        if key not in self._memo:
            made = layer_mask(mask, survivors, held, length)
            self._memo[key] = made, mask, survivors, held
        gathered["attention_mask"] = self._memo[key][0]
        return gathered

    def values(
        self, values: tuple[Any, ...], survivors: Survivors, length: int
    ) -> tuple[Any, ...]:
        """Further positional arguments of the call, gathered likewise."""
        return tuple(self._value(value, survivors, length) for value in values)

    def _value(self, value: Any, survivors: Survivors, length: int) -> Any:
        if survivors.places is None:
            return value
        if isinstance(value, tuple | list):
            return type(value)(self._value(item, survivors, length) for item in value)
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != length:
            return value
        if value.shape[0] not in (1, survivors.places.shape[0]):
            return value
        key = id(value), id(survivors)
        if key not in self._memo:
            self._memo[key] = take_columns(value, survivors.places), value, survivors
        return self._memo[key][0]


def layer_mask(
    mask: Tensor | None, survivors: Survivors, held: Held, length: int
) -> Tensor | None:
    """The model's own attention mask, gathered to (surviving queries) x (keys the layer holds).

    Args:
        mask: [1 or B, 1, S, M] bool or additive, for the last M positions seen; None where causal
            order is all there is. Keys before those positions are out of a sliding window.
        survivors: Queries.
        held: Keys, the new ones included.
        length: S.

    Returns:
        [B, 1, m, K], or None where causal order among the columns is still all there is.
    """
    key_valid = held.mask()
    n_queries = length if survivors.places is None else survivors.places.shape[1]
    if mask is None and key_valid is None and n_queries in (1, held.n_held):
        return None
    positions = held.positions()  # [B, K]
    n_rows, places = positions.shape[0], survivors.places
    if mask is None:
        if places is None:
            places = torch.arange(length, device=positions.device).expand(n_rows, -1)  # [B, S]
        queries = places + (held.n_seen - length)
        gathered = positions[:, None, :] <= queries[:, :, None]
    else:
        gathered = mask.expand(n_rows, *mask.shape[1:])[:, 0]
        columns = positions - (held.n_seen - mask.shape[-1])
        wanted = columns.clamp(min=0)[:, None, :]  # [B, 1, K]
        if places is None:  # one kernel instead of four: each step of decoding comes here
            gathered = gathered.gather(2, wanted.expand(-1, length, -1))
        else:
            rows = torch.arange(n_rows, device=positions.device)[:, None, None]
            gathered = gathered[rows, places[:, :, None], wanted]  # [B, m, K]
        if held.n_seen > mask.shape[-1]:
            in_sight = columns >= 0
            key_valid = in_sight if key_valid is None else key_valid & in_sight
    if key_valid is not None:
        hidden = 0 if gathered.dtype == torch.bool else torch.finfo(gathered.dtype).min
        gathered = gathered.masked_fill(~key_valid[:, None, :], hidden)
        gathered = _filler_sees_itself(gathered, survivors.valid)
    return gathered[:, None]


def _filler_sees_itself(mask: Tensor, valid: Tensor | None) -> Tensor:
    """Gives filler queries one key, as a softmax over none is not a number in some kernels."""
    if valid is None:
        return mask
    n_queries, n_keys = mask.shape[1:]
    own = torch.eye(n_queries, dtype=torch.bool, device=mask.device)
    own = torch.nn.functional.pad(own, (n_keys - n_queries, 0))
    return mask.masked_fill(own & ~valid[:, :, None], 1 if mask.dtype == torch.bool else 0)
