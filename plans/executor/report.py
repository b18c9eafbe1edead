"""What the executor did in a prefill, row by row: which tokens each cut kept, and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from tpcal.plans.executor.cutting import PreparedCut
from tpcal.plans.executor.prompt import ViewGrid, by_image


@dataclass(frozen=True)
class Patch:
    """The place of a visual token in its image."""

    token: int
    """Rank among the prompt's original visual tokens."""
    image: int
    """Which image or video of the prompt, from 0."""
    time: int
    """Step of a video; 0 in an image."""
    row: int
    """Row in the token grid of its view."""
    col: int
    box: tuple[float, float, float, float] | None
    """x0, y0, x1, y1 in fractions of the image as the vision tower saw it, after the processor's
    resizing and cropping; None for tokens that cover no pixels. Multiply by width and height to
    get pixels."""


@dataclass(frozen=True)
class CutRecord:
    """What one cut did to each row."""

    layer: int
    index: Tensor
    """[B, N] int64 original ranks of the visual tokens before the cut; -1 on filler."""
    stays: Tensor
    """[B, N] bool, True where such a token stays."""
    text_to_visual: Tensor | None = None
    """[B] attention mass from text to visual tokens, measured for a conditional cut."""
    visual_to_text: Tensor | None = None
    """[B] attention mass from visual tokens to text, likewise."""

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Original ranks of the visual tokens kept in each row, ascending."""
        return tuple(
            tuple(rank[stay].tolist()) for rank, stay in zip(self.index, self.stays, strict=True)
        )


@dataclass(frozen=True)
class Report:
    """What a prefill did, in each row of its batch.

    Example:
        >>> at = torch.arange(4)  # an image of two by two tokens, of which the last one stays
        >>> grid = ViewGrid(row=at // 2, col=at % 2, n_rows=2, n_cols=2)
        >>> cut = CutRecord(layer=1, index=at[None], stays=(at == 3)[None])
        >>> report = Report((cut,), lengths=(9, 6), n_visual=(4,), grids=((grid,),))
        >>> report.counts()
        [((1, 1),)]
        >>> report.cuts[0].kept
        ((3,),)
        >>> report.image_sizes, report.kept_of_images(0)
        (((4,),), ((3,),))
        >>> report.patches(0)
        (Patch(token=3, image=0, time=0, row=1, col=1, box=(0.5, 0.5, 1.0, 1.0)),)
    """

    cuts: tuple[CutRecord, ...]
    """The cuts in order: ``kept`` has the tokens that stayed, ``text_to_visual`` the measured
    mass."""
    lengths: tuple[int, ...]
    """[L] tokens each layer got, filler of ragged rows included; empty without an image."""
    n_visual: tuple[int, ...]
    """Visual tokens of each row before the first cut."""
    grids: tuple[tuple[ViewGrid, ...], ...] = ()
    """The views of each row's images."""

    @property
    def image_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Visual tokens of each image or video of each row, before the first cut."""
        return tuple(
            tuple(sum(len(view.row) for view in image) for image in by_image(views))
            for views in self.grids
        )

    def kept_of_images(self, cut: int, row: int = 0) -> tuple[tuple[int, ...], ...]:
        """The tokens that a cut kept of each image of a row, counted from 0 in each image.

        Args:
            cut: Number of the cut, from 0.
            row: Number of the prompt in the batch, from 0.
        """
        kept, start = self.cuts[cut].kept[row], 0
        found = []
        for n in self.image_sizes[row]:
            found.append(tuple(rank - start for rank in kept if start <= rank < start + n))
            start += n
        return tuple(found)

    def counts(self) -> list[tuple[tuple[int, int], ...]]:
        """For each row, the layer of every cut and the number of visual tokens that it left.

        A conditional cut leaves all of them in a row whose condition is not met.
        """
        left = [cut.stays.sum(dim=1).tolist() for cut in self.cuts]
        layers = [cut.layer for cut in self.cuts]
        rows = zip(*left, strict=True) if left else [()] * len(self.n_visual)
        return [tuple(zip(layers, row, strict=True)) for row in rows]

    def patches(self, cut: int, row: int = 0) -> tuple[Patch, ...]:
        """The visual tokens that a prompt kept at a cut, with their places in its images.

        Args:
            cut: Number of the cut, from 0.
            row: Number of the prompt in the batch, from 0.
        """
        places = [
            (grid, *place)
            for grid in self.grids[row]
            for place in zip(
                grid.row.tolist(), grid.col.tolist(), grid.boxes().tolist(), strict=True
            )
        ]
        return tuple(
            Patch(token, grid.image, grid.time, at, col, None if isnan(box[0]) else tuple(box))
            for token in self.cuts[cut].kept[row]
            for grid, at, col, box in [places[token]]
        )


def without_images(cuts: Iterable[PreparedCut], n_rows: int) -> Report:
    """The report of a prefill without a visual token; such a row has the same in any batch.

    Args:
        cuts: The cuts of the plan, in order.
        n_rows: Number of prompts.
    """
    nothing = torch.empty(n_rows, 0, dtype=torch.int64)
    unmeasured, zero = torch.full((n_rows,), torch.nan), torch.zeros(n_rows)
    records = tuple(
        CutRecord(prepared.cut.layer, nothing, nothing.bool(), *masses)
        for prepared in cuts
        for masses in [(unmeasured, zero) if prepared.cut.condition else (None, None)]
    )
    return Report(records, (), (0,) * n_rows, ((),) * n_rows)
