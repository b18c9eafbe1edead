"""Images that a model divides into tiles of one size: views and arrangement of the tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families.base import rect_grid

_NOWHERE = (math.nan,) * 4
_FINENESS = 16
"""Cells along a tile that are compared; enough to show the shapes of photos and page layouts."""
_UNLIKE = 0.5
"""Largest share of the overview's variance that the right arrangement may leave unexplained."""


def tile_views(n_tokens: int, n_rows: int, n_cols: int, image: int) -> list[ViewGrid]:
    """The views of an image cut into n_rows x n_cols equal tiles, in reading order.

    Args:
        n_tokens: Number of tokens of a tile, a square number.
        n_rows: Number of rows of tiles.
        n_cols: Number of tiles in a row.
        image: Number of the image in its prompt.
    """
    return [
        _view(
            n_tokens,
            image,
            (col / n_cols, row / n_rows, (col + 1) / n_cols, (row + 1) / n_rows),
        )
        for row in range(n_rows)
        for col in range(n_cols)
    ]


def whole_view(n_tokens: int, image: int) -> ViewGrid:
    """The view of a whole image as one tile."""
    return _view(n_tokens, image, (0.0, 0.0, 1.0, 1.0))


def lost_view(n_tokens: int, image: int) -> ViewGrid:
    """The view of a tile with an unknown position in the image: its boxes are nan."""
    return _view(n_tokens, image, _NOWHERE)


def unplaced_view(n_tokens: int, image: int) -> ViewGrid:
    """The view of tokens that a resampler computes from the whole image: a line without area."""
    place = torch.arange(n_tokens)
    return ViewGrid(
        torch.zeros_like(place), place + 1, 1, n_tokens + 1, n_extra_cols=n_tokens, image=image
    )


def sketches(pixels: Tensor) -> Tensor:
    """[n, 3, 16, 16] coarse copies of the tiles [n, 3, H, W], for `arrangement`."""
    return adaptive_avg_pool2d(pixels.float(), _FINENESS)


def arrangement(tiles: Tensor, overview: Tensor) -> tuple[int, int] | None:
    """Rows and columns of tiles whose composition is most similar to the overview.

    Some processors give the number of tiles of an image, but not their arrangement. Of equally
    good arrangements the one closest to a square is returned; this is a guess only for images
    without structure.

    Args:
        tiles: [n, 3, 16, 16] sketches in reading order.
        overview: [3, 16, 16] sketch of the whole image.

    Returns:
        (rows, columns); None if no arrangement resembles the overview.
    """
    # For every factorisation rows x cols = n, the tiles are put together and reduced to 16 x 16.
    # The best one minimises the mean squared difference from the overview. It is accepted if this
    # is at most half of the overview's variance, which is the error of a constant image.
    n = len(tiles)
    shapes = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
    shapes.sort(key=lambda shape: abs(shape[0] - shape[1]))
    errors = torch.stack([(_mosaic(tiles, *shape) - overview).square().mean() for shape in shapes])
    best, least, spread = torch.stack([errors.argmin(), errors.min(), overview.var()]).tolist()
    return None if least > _UNLIKE * spread else shapes[int(best)]


def _mosaic(tiles: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """[3, 16, 16] the tiles put together and reduced to the size of one tile."""
    size = tiles.shape[-1]
    rows = tiles.view(n_rows, n_cols, 3, size, size).permute(2, 0, 3, 1, 4)
    return adaptive_avg_pool2d(rows.reshape(3, n_rows * size, n_cols * size), size)


def _view(n_tokens: int, image: int, region: tuple[float, float, float, float]) -> ViewGrid:
    side = math.isqrt(n_tokens)
    n_rows = side if side * side == n_tokens else 1
    return rect_grid(n_rows, n_tokens // n_rows, image=image, region=region)
