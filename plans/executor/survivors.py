"""The tokens of a forward pass that are still there after its cuts.

A *place* counts the tokens of the pass as the model sees them, 0..S-1. A *column* counts the
tokens that a layer physically gets, 0..m-1. They are the same before the first cut. Rows that keep
fewer tokens than others carry filler on the left, so the last column is the last token of every
row.

For example, two rows of six tokens, where ``v`` marks visual tokens:

    place     0  1  2  3  4  5          kept by a cut
    row 0     t  v  v  v  v  t          visual tokens at places 1 and 3
    row 1     t  v  v  v  v  t          the visual token at place 2

    column    0  1  2  3                places [[0, 1, 3, 5],     valid [[T, T, T, T],
    row 0     0  1  3  5                        [4, 0, 2, 5]]            [F, T, T, T]]
    row 1     -  0  2  5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcal.plans.executor.kv_columns import right_aligned
from tpcal.plans.executor.prompt import PromptTokens


@dataclass(frozen=True)
class Survivors:
    """The tokens of a forward pass that are still there."""

    places: Tensor | None
    """[B, m] int64 place of each column, ascending where valid; None before the first cut."""
    valid: Tensor | None
    """[B, m] bool, False on filler; None if there is no filler."""
    n_visual: tuple[int, ...]
    """Visual tokens alive in each row."""
    sizes: Tensor | None = None
    """[B, m] float32, how many tokens each one stands for (`merging`); None if each is itself."""

    @property
    def equal_rows(self) -> bool:
        """Whether all rows have equally many visual tokens, so that none has filler for them."""
        return min(self.n_visual) == max(self.n_visual)

    def to(self, device: torch.device) -> Survivors:
        """The survivors on a device; the same object if they are there already."""
        places, valid = self.places, self.valid
        if places is None or places.device == device:
            return self
        moved, sizes = (None if one is None else one.to(device) for one in (valid, self.sizes))
        return Survivors(places.to(device), moved, self.n_visual, sizes)

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
    # A stable sort of 1 (True) and 0 (False) puts the True columns first and keeps their order.
    valid, order = mask.view(torch.uint8).sort(dim=1, descending=True, stable=True)
    return order[:, :n_columns], valid[:, :n_columns].view(torch.bool)


def ranks(prompt: PromptTokens, survivors: Survivors, columns: Tensor, valid: Tensor) -> Tensor:
    """[B, N] int64 original rank of the visual tokens in ``columns``; -1 on filler."""
    rank = prompt.rank
    if survivors.places is not None:
        rank = rank.gather(1, survivors.places)
    rank = rank.gather(1, columns)
    return rank if survivors.equal_rows else rank.masked_fill(~valid, -1)


def narrowed(
    prompt: PromptTokens,
    survivors: Survivors,
    columns: Tensor,
    stays: Tensor,
    n_visual: Sequence[int],
) -> tuple[Survivors, Tensor]:
    """The survivors of a cut. The first cut also drops the prompt's padding.

    Args:
        prompt: The pass.
        survivors: The survivors before the cut.
        columns: [B, N] columns of the visual tokens alive.
        stays: [B, N] True where such a token stays.
        n_visual: Number of True entries in each row of ``stays``.

    Returns:
        The survivors, and [B, m'] int64 columns to gather from the states before the cut.
    """
    # Text always stays. The scatter writes the selector's choice at the visual columns; filler
    # of `columns` points at columns that are not visual, so `|` leaves text as it is.
    text = survivors.take(prompt.fixed)
    keep = text | torch.zeros_like(text).scatter_(1, columns, stays)
    # The lengths of rows are computed from counts on the CPU, so no transfer waits for the device.
    lengths = [
        real - visual + kept
        for real, visual, kept in zip(prompt.n_real, prompt.n_visual, n_visual, strict=True)
    ]
    # The longest row sets the number of columns. Shorter rows get filler on the left.
    order = right_aligned(keep, max(lengths))
    valid = None if min(lengths) == max(lengths) else keep.gather(1, order)
    # `order` counts columns before this cut; earlier places turn it into places of the pass.
    places = order if survivors.places is None else survivors.places.gather(1, order)
    sizes = None if survivors.sizes is None else survivors.sizes.gather(1, order)
    return Survivors(places, valid, tuple(n_visual), sizes), order
