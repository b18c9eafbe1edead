"""Images that a model sees as tiles of one size: their views, and how the tiles lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families.base import rect_grid

_NOWHERE = (math.nan,) * 4
_FINENESS = 16
"""Cells along a tile that are compared: a photo's shapes and a page's blocks show in them."""
_UNLIKE = 0.5
"""Share of the overview's variance that the right arrangement leaves unexplained at most."""


def tile_views(n_tokens: int, n_rows: int, n_cols: int, image: int) -> list[ViewGrid]:
    """The views of an image cut into n_rows x n_cols equal tiles, in reading order.

    Args:
        n_tokens: Tokens of a tile, a square.
        n_rows: Rows of tiles.
        n_cols: Tiles in a row.
        image: Which image.
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
    """The view of a whole image in one tile."""
    return _view(n_tokens, image, (0.0, 0.0, 1.0, 1.0))


def lost_view(n_tokens: int, image: int) -> ViewGrid:
    """The view of a tile of which nobody knows where in the image it lies: its boxes are nan."""
    return _view(n_tokens, image, _NOWHERE)


def unplaced_view(n_tokens: int, image: int) -> ViewGrid:
    """Tokens that a resampler made of the whole image: a line without area."""
    place = torch.arange(n_tokens)
    return ViewGrid(
        torch.zeros_like(place), place + 1, 1, n_tokens + 1, n_extra_cols=n_tokens, image=image
    )


def sketches(pixels: Tensor) -> Tensor:
    """[n, 3, 16, 16] coarse copies of the tiles [n, 3, H, W], for `arrangement`."""
    return adaptive_avg_pool2d(pixels.float(), _FINENESS)


def arrangement(tiles: Tensor, overview: Tensor) -> tuple[int, int] | None:
    """Rows and columns of the tiles: those that put together look most like the overview.

    Some processors tell how many tiles an image has and not how they lie. Of equally good ones the
    squarest counts, which is chance only where the image has no features.

    Args:
        tiles: [n, 3, 16, 16] sketches in reading order.
        overview: [3, 16, 16] sketch of the whole image.

    Returns:
        None where no arrangement resembles the overview, so that it is not one.
    """
    n = len(tiles)
    shapes = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
    shapes.sort(key=lambda shape: abs(shape[0] - shape[1]))
    errors = torch.stack([(_mosaic(tiles, *shape) - overview).square().mean() for shape in shapes])
    best, least, spread = torch.stack([errors.argmin(), errors.min(), overview.var()]).tolist()
    return None if least > _UNLIKE * spread else shapes[int(best)]


def _mosaic(tiles: Tensor, n_rows: int, n_cols: int) -> Tensor:
    """[3, 16, 16] the tiles put together and made as small as one of them."""
    size = tiles.shape[-1]
    rows = tiles.view(n_rows, n_cols, 3, size, size).permute(2, 0, 3, 1, 4)
    return adaptive_avg_pool2d(rows.reshape(3, n_rows * size, n_cols * size), size)


def _view(n_tokens: int, image: int, region: tuple[float, float, float, float]) -> ViewGrid:
    side = math.isqrt(n_tokens)
    n_rows = side if side * side == n_tokens else 1
    return rect_grid(n_rows, n_tokens // n_rows, image=image, region=region)
