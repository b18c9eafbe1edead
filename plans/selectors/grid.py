"""grid: keep tokens evenly spread over each view; uses positions only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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

_BITS = 6
_SIDE = 1 << _BITS


@dataclass(frozen=True)
class Grid(Selector):
    """Keeps tokens at equal steps along a Hilbert curve through each view.

    The curve visits neighbours one after the other, so that equal steps along it are evenly spread
    in both directions, for any count and also after an earlier cut. Views share ``n_keep`` in
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


def hilbert(row: Tensor, col: Tensor) -> Tensor:
    """[...] int64 position of each cell on the Hilbert curve of a square of side 4096.

    Args:
        row: [...] int64 in 0..4095.
        col: [...] int64 in 0..4095.
    """
    # The curve is the same in every square of side 64, but for the way in which it is turned. So
    # two tables say all: the curve through the 64 x 64 squares, and through the cells of one. A
    # GPU is asked for 20 kernels instead of 200 for one level of the curve after the other.
    place, turns = _curves(row.device)
    square = (row >> _BITS) * _SIDE + (col >> _BITS)
    cell = (row & _SIDE - 1) * _SIDE + (col & _SIDE - 1)
    return place[square] * _SIDE**2 + place[turns[square] + cell]


@cache
def _curves(device: torch.device) -> tuple[Tensor, Tensor]:
    """Curves through a square of side 64, and the turn of the curve in each of its cells.

    Returns:
        [4 * 4096] int64 positions of the cells, for each of the four turns of the curve, and
        [4096] int64 index at which the positions of a cell's own turn begin, for the first turn.
    """
    # From the largest square to the smallest: the curve visits the four quadrants of a square in
    # the order 0: top left, 1: bottom left, 2: bottom right, 3: top right. In the first and the
    # last quadrant the curve is transposed, and in the last one it is mirrored too. A turn of 1
    # means transposed, 2 mirrored, 3 both; which of the two comes first makes no difference.
    with torch.inference_mode(False):
        index = torch.arange(4 * _SIDE**2, device=device)
        turn, row, col = index // _SIDE**2, index // _SIDE % _SIDE, index % _SIDE
        place = torch.zeros_like(index)
        for bit in reversed(range(_BITS)):
            mirrored = turn // 2
            down, right = (row >> bit & 1) ^ mirrored, (col >> bit & 1) ^ mirrored
            transposed = turn % 2 == 1
            swapped = torch.where(transposed, down, right)
            down, right = torch.where(transposed, right, down), swapped
            place = 4 * place + (3 * right ^ down)
            turn = turn ^ (1 - down) ^ 2 * ((1 - down) & right)
        return place, turn[: _SIDE**2] * _SIDE**2
