"""grid: keep tokens evenly spread over each image; uses positions only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    counts_of,
    image_counts,
    image_quotas,
    ranks,
)


@dataclass(frozen=True)
class Grid(Selector):
    """Keeps tokens at equal steps along a Hilbert curve through each image.

    The curve visits neighbours one after the other, so that equal steps along it are evenly spread
    in both directions, for any count and also after an earlier cut. Images share ``n_keep`` in
    proportion to their numbers of tokens.

    Needs:   nothing
    Cost:    O(B N log N)
    Source:  none; the curve is Hilbert's (1891)
    """

    @property
    def reads_grid(self) -> bool:
        return True

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, image = tokens.valid, tokens.image.clamp(min=0)
        n_images = counts_of(tokens, n_keep).images
        group = None if n_images == 1 else image
        # Step 1: order the n tokens of each image along the curve; `step` counts from 0.
        walk = hilbert(tokens.grid_row.clamp(min=0), tokens.grid_col.clamp(min=0))
        step = ranks(-walk, valid, group).masked_fill(~valid, 0)
        count = image_counts(image, valid, n_images).gather(-1, image).clamp(min=1)
        # Step 2: keep the tokens at which floor(s k / n + 1/2) increases, which happens k times
        # while s goes from 0 to n, at equal steps.
        quota = image_quotas(image, valid, n_keep, n_images).gather(-1, image)
        return valid & (_passed(step + 1, quota, count) > _passed(step, quota, count))


def _passed(step: Tensor, quota: Tensor, count: Tensor) -> Tensor:
    return (step * quota + count // 2) // count


def hilbert(row: Tensor, col: Tensor, n_bits: int = 12) -> Tensor:
    """[...] int64 position of each cell on the Hilbert curve of a square of side 2^n_bits.

    Args:
        row: [...] int64 in 0..2^n_bits - 1.
        col: [...] int64 in 0..2^n_bits - 1.
        n_bits: Number of levels of the curve. It is fixed, because another number of levels
            rotates the curve.
    """
    # From the largest square to the smallest: the curve visits the four quadrants of a square in
    # the order 0: top left, 1: bottom left, 2: bottom right, 3: top right. Each quadrant holds
    # side^2 cells. In the first and the last quadrant the curve is transposed, and in the last one
    # it is mirrored too; the coordinates are transformed instead of the curve.
    place = torch.zeros_like(row)
    for bit in reversed(range(n_bits)):
        side = 1 << bit
        down, right = (row & side) > 0, (col & side) > 0
        place = place + side * side * (3 * right.long() ^ down.long())
        row, col = row & (side - 1), col & (side - 1)
        flip = ~down & right
        row, col = torch.where(flip, side - 1 - row, row), torch.where(flip, side - 1 - col, col)
        row, col = torch.where(down, row, col), torch.where(down, col, row)
    return place
