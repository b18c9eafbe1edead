"""pooling: keep the mean of each cell of a coarser grid; the control that a smaller image is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpcal.plans.selectors._merging import mean_states
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    image_counts,
    image_quotas,
    ranks,
)

_FAR = 1 << 20  # more than a row or column of any grid


@dataclass(frozen=True)
class Pooling(Selector):
    """Divides each image into as many cells as tokens may stay; each becomes the mean of a cell.

    Bands of rows hold tokens in proportion to their cells, and a band's cells hold equally many,
    so that the count is exact for any grid and among the survivors of an earlier cut; where a
    square grid goes evenly into square cells, these it is. The token nearest to its cell's centre
    stays. Tokens that cover no pixels (newlines) belong to no cell, stay as they are and leave
    first. Images share ``n_keep`` in proportion to their tokens.

    Needs:   nothing
    Cost:    O(B N log N) to choose and O(B N D) to merge
    Source:  none; average pooling of visual tokens is the usual baseline
    """

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        if not tokens.valid.any():
            return torch.zeros_like(tokens.valid)
        image, valid, covers = _images(tokens)
        quota = image_quotas(image, valid, n_keep)
        cell = cells(tokens, quota)
        n_cells = torch.minimum(quota, image_counts(image, covers))
        n_rest = (quota - n_cells).gather(-1, image)
        plain = valid & ~covers
        rest = plain & (ranks(-tokens.index, plain, image) < n_rest)
        return nearest_to_centre(tokens, cell) | rest

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        if not stays.any():
            return None
        image, _, covers = _images(tokens)
        cell = cells(tokens, image_counts(image, stays))
        place = torch.arange(cell.shape[-1], device=cell.device).expand_as(cell)
        holder = torch.zeros_like(cell).scatter_add(
            -1, cell.clamp(min=0), place.masked_fill(~(stays & covers), 0)
        )  # [B, N] by cell
        into = holder.gather(-1, cell.clamp(min=0)).masked_fill(cell < 0, -1)
        return mean_states(tokens.hidden, torch.where(stays, place, into))


def cells(tokens: Tokens, quota: Tensor) -> Tensor:
    """[B, N] int64 cell of each token, counted through the row's images; -1 where it has none.

    Args:
        tokens: The candidates.
        quota: [B, M] int64 cells of each image; no more are made than there are tokens to hold.
    """
    image, _, covers = _images(tokens)
    counts = image_counts(image, covers)
    quota = torch.minimum(quota, counts)
    start = (quota.cumsum(-1) - quota).gather(-1, image)
    n, k = counts.gather(-1, image).clamp(min=1), quota.gather(-1, image)
    none, k = ~covers | (k == 0), k.clamp(min=1)
    row, col = tokens.grid_row.clamp(min=0), tokens.grid_col.clamp(min=0)
    tall, wide = _extent(row, image, covers), _extent(col, image, covers)
    n_bands = (k * tall / wide).sqrt().round().long().clamp(min=1).minimum(k)
    place = ranks(-(row * _FAR + col), covers, image).masked_fill(none, 0)
    band = (((place + 1) * k - 1) // n * n_bands + n_bands - 1) // k
    first, after = band * k // n_bands, (band + 1) * k // n_bands
    n_in_band = (n * after // k - n * first // k).clamp(min=1)
    place = ranks(-(col * _FAR + row), ~none, image * _FAR + band).masked_fill(none, 0)
    cell = first + ((place + 1) * (after - first) - 1) // n_in_band
    return (start + cell).masked_fill(none, -1)


def nearest_to_centre(tokens: Tokens, cell: Tensor) -> Tensor:
    """[B, N] bool: of each cell the token nearest to the mean of its places; exact in integers."""
    inside, at = cell >= 0, cell.clamp(min=0)

    def total(x: Tensor) -> Tensor:
        return torch.zeros_like(cell).scatter_add(-1, at, x.masked_fill(~inside, 0)).gather(-1, at)

    count = total(torch.ones_like(cell))
    away = [count * axis - total(axis) for axis in (tokens.grid_row, tokens.grid_col)]
    distance = away[0] * away[0] + away[1] * away[1]
    return inside & (ranks(-distance, inside, at) == 0)


def _extent(place: Tensor, image: Tensor, covers: Tensor) -> Tensor:
    """[B, N] rows or columns that the image's tokens span."""
    n_images = int(image.max()) + 1
    far = place.masked_fill(~covers, -1)
    high = far.new_full((len(far), n_images), -1).scatter_reduce(-1, image, far, "amax")
    far = place.masked_fill(~covers, _FAR)
    low = far.new_full((len(far), n_images), _FAR).scatter_reduce(-1, image, far, "amin")
    return (high - low + 1).clamp(min=1).gather(-1, image)


def _images(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Image of each token, whether it is one, and whether it covers pixels; each [B, N]."""
    covers = tokens.valid if tokens.covers is None else tokens.valid & tokens.covers
    return tokens.image.clamp(min=0), tokens.valid, covers
