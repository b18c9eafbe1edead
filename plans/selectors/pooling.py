"""pooling: keep the mean of each cell of a coarser grid; the equivalent of a smaller image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tpcal.plans.selectors._merging import mean_states
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    counts_of,
    image_counts,
    image_quotas,
    n_kept,
    ranks,
)

_FAR = 1 << 20  # more than a row or column of any grid


@dataclass(frozen=True)
class Pooling(Selector):
    """Divides each view into as many cells as tokens are kept, and keeps the mean of each cell.

    The view is divided into bands of rows, which hold tokens in proportion to their numbers of
    cells; the cells of a band hold equally many tokens. The count is therefore exact for any grid
    and after earlier cuts, and a square grid that divides evenly gives square cells. The token
    nearest to the centre of its cell is kept and becomes the mean. Tokens that cover no pixels
    (newlines) belong to no cell, are never averaged, and are pruned first. Views share ``n_keep``
    in proportion to their numbers of tokens.

    Needs:   nothing
    Cost:    O(B N log N) to choose and O(B N D) to merge
    Source:  none; average pooling of visual tokens is the usual baseline
    """

    @property
    def reads_grid(self) -> bool:
        return True

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        counts = counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(tokens.valid)
        # One token per cell. If an image has more quota than tokens that cover pixels, the first
        # tokens without pixels make up the rest.
        image, valid, covers = _images(tokens)
        quota = image_quotas(image, valid, n_keep, counts.images)
        cell = cells(tokens, quota)
        n_cells = torch.minimum(quota, image_counts(image, covers, counts.images))
        n_rest = (quota - n_cells).gather(-1, image)
        plain = valid & ~covers
        rest = plain & (ranks(-tokens.index, plain, image) < n_rest)
        return nearest_to_centre(tokens, cell) | rest

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        most = n_kept(tokens, stays)
        if not most:
            return None
        # The cells follow from the counts that stay, as in `select`. `holder` maps each cell to
        # the index of the token kept in it, and all tokens of the cell are merged into that token.
        image, _, covers = _images(tokens)
        n_images = None if tokens.counts is None else tokens.counts.images
        cell = cells(tokens, image_counts(image, stays, n_images))
        place = torch.arange(cell.shape[-1], device=cell.device).expand_as(cell)
        holder = torch.zeros_like(cell).scatter_add(
            -1, cell.clamp(min=0), place.masked_fill(~(stays & covers), 0)
        )  # [B, N] by cell
        into = holder.gather(-1, cell.clamp(min=0)).masked_fill(cell < 0, -1)
        return mean_states(tokens.hidden, torch.where(stays, place, into), most)


def cells(tokens: Tokens, quota: Tensor) -> Tensor:
    """[B, N] int64 cell of each token, numbered through the images of the row; -1 for no cell.

    Args:
        tokens: The candidates.
        quota: [B, M] int64 number of cells of each image; at most one cell per token is made.
    """
    # Below, n is the number of tokens of an image, k its number of cells, and `start` the number
    # of the image's first cell in the row.
    image, _, covers = _images(tokens)
    n_images = quota.shape[-1]
    counts = image_counts(image, covers, n_images)
    quota = torch.minimum(quota, counts)
    start = (quota.cumsum(-1) - quota).gather(-1, image)
    n, k = counts.gather(-1, image).clamp(min=1), quota.gather(-1, image)
    none, k = ~covers | (k == 0), k.clamp(min=1)
    row, col = tokens.grid_row.clamp(min=0), tokens.grid_col.clamp(min=0)
    # Step 1: r = round(sqrt(k height / width)) bands make the cells about square. Band b has the
    # cells floor(b k / r) <= c < floor((b + 1) k / r).
    tall, wide = (_extent(axis, image, covers, n_images) for axis in (row, col))
    n_bands = (k * tall / wide).sqrt().round().long().clamp(min=1).minimum(k)
    # Step 2: the token at place p of the reading order belongs to the band of cell
    # c = ceil((p + 1) k / n) - 1, which is b = ceil((c + 1) r / k) - 1. A band thus holds tokens
    # in proportion to its cells, and integer arithmetic makes the count exact.
    group = None if n_images == 1 else image
    place = ranks(-(row * _FAR + col), covers, group).masked_fill(none, 0)
    band = (((place + 1) * k - 1) // n * n_bands + n_bands - 1) // k
    first, after = band * k // n_bands, (band + 1) * k // n_bands
    n_in_band = (n * after // k - n * first // k).clamp(min=1)
    # Step 3: inside a band of m tokens and q cells the tokens are ordered by column; place p gets
    # the cell ceil((p + 1) q / m) - 1 of the band.
    place = ranks(-(col * _FAR + row), ~none, image * _FAR + band).masked_fill(none, 0)
    cell = first + ((place + 1) * (after - first) - 1) // n_in_band
    return (start + cell).masked_fill(none, -1)


def nearest_to_centre(tokens: Tokens, cell: Tensor) -> Tensor:
    """[B, N] bool: the token of each cell nearest to the mean position of the cell's tokens."""
    # With m tokens in a cell, |m x - sum of x|^2 = m^2 |x - mean|^2 gives the same ranking as the
    # distance to the mean, and stays an integer, so that ties are exact.
    inside, at = cell >= 0, cell.clamp(min=0)

    def total(x: Tensor) -> Tensor:
        return torch.zeros_like(cell).scatter_add(-1, at, x.masked_fill(~inside, 0)).gather(-1, at)

    count = total(torch.ones_like(cell))
    away = [count * axis - total(axis) for axis in (tokens.grid_row, tokens.grid_col)]
    distance = away[0] * away[0] + away[1] * away[1]
    return inside & (ranks(-distance, inside, at) == 0)


def _extent(place: Tensor, image: Tensor, covers: Tensor, n_images: int) -> Tensor:
    """[B, N] number of rows or columns that the tokens of each token's image span."""
    far = place.masked_fill(~covers, -1)
    high = far.new_full((len(far), n_images), -1).scatter_reduce(-1, image, far, "amax")
    far = place.masked_fill(~covers, _FAR)
    low = far.new_full((len(far), n_images), _FAR).scatter_reduce(-1, image, far, "amin")
    return (high - low + 1).clamp(min=1).gather(-1, image)


def _images(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Image of each token, whether it is no filler, and whether it covers pixels; each [B, N]."""
    covers = tokens.valid if tokens.covers is None else tokens.valid & tokens.covers
    return tokens.image.clamp(min=0), tokens.valid, covers
