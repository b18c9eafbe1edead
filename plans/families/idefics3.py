"""Idefics3 and SmolVLM: each tile is one run of tokens, and text separates the tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family
from tpcal.plans.images.tiles import lost_view, tile_views, whole_view
from tpcal.plans.images.views import warn_of_runs


class Idefics3(Family):
    """Supports Idefics3 and SmolVLM, whose images are tiles with an overview.

    Source:
        Laurençon et al. 2024 (arXiv 2408.12637); Marafioti et al. 2025 (arXiv 2504.05299).
    """

    name = "idefics3"
    architectures = (
        "Idefics3ForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    )

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """One view for every tile, followed by one for the overview.

        The tokens around the tiles show where the tiles lie. A frame of a video is an image.
        """
        if inputs.get("input_ids") is None:
            warn_of_runs()
            return super().grids(model, prompt, inputs)
        ids, visual = inputs["input_ids"].tolist(), prompt.visual.tolist()
        return tuple(_row_views(_runs(*row)) for row in zip(ids, visual, strict=True))


FAMILY = Idefics3()

Run = tuple[int, int, bool, bool]
"""Tokens, id of the marker, whether a tile of the row follows, whether it is an overview."""


def _runs(ids: Sequence[int], visual: Sequence[bool]) -> list[Run]:
    """The tiles of a row of the batch.

    A tile is ``<boundary> <marker> <image> … <image>``. It is followed by the next tile of its
    row, by a line break at the end of the row, or, after an overview, by one more boundary.
    """
    starts = [i for i, here in enumerate(visual) if here and not (i and visual[i - 1])]
    ends = [i + 1 for i, here in enumerate(visual) if here and not visual[i + 1]]
    runs = []
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        goes_on = starts[at + 1 : at + 2] == [end + 2]
        boundary, marker = ids[max(start - 2, 0)], ids[max(start - 1, 0)]
        runs.append((end - start, marker, goes_on, not goes_on and ids[end] == boundary))
    return runs


def _row_views(runs: Sequence[Run]) -> tuple[ViewGrid, ...]:
    """The views of a row of the batch; an image ends with its overview or before another."""
    views: list[ViewGrid] = []
    image: list[Run] = []
    n_images = 0
    for run in runs:
        if image and run[1] == image[0][1]:  # a first tile begins another image
            views += _image_views(image, n_images)
            image, n_images = [], n_images + 1
        image.append(run)
        if run[3]:
            views += _image_views(image, n_images)
            image, n_images = [], n_images + 1
    return tuple(views + _image_views(image, n_images))


def _image_views(runs: Sequence[Run], image: int) -> list[ViewGrid]:
    tiles = [run for run in runs if not run[3]]
    overview = [whole_view(run[0], image) for run in runs if run[3]]
    if not tiles:
        return overview
    n_rows = sum(not goes_on for _, _, goes_on, _ in tiles)
    n_cols = len(tiles) // max(n_rows, 1)
    if n_rows * n_cols != len(tiles):
        return [lost_view(run[0], image) for run in tiles] + overview
    return tile_views(tiles[0][0], n_rows, n_cols, image) + overview
