"""Ovis2: the overview comes first, then the tiles, separated by visual indicators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, run_lengths
from tpcal.plans.images.tiles import lost_view, tile_views, whole_view
from tpcal.plans.images.views import warn_of_runs


class Ovis2(Family):
    """Supports Ovis2; its visual indicators count as text and are never pruned.

    Source:
        Lu et al. 2024 (arXiv 2405.20797).
    """

    name = "ovis2"
    architectures = ("Ovis2ForConditionalGeneration",)

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """One view for the overview and one for every tile."""
        if inputs.get("input_ids") is None:
            warn_of_runs()
            return super().grids(model, prompt, inputs)
        start, _, _, row_end, _ = model.config.visual_indicator_token_ids
        views = []
        for ids, visual, lengths in zip(
            inputs["input_ids"].tolist(),
            prompt.visual.tolist(),
            run_lengths(prompt.visual),
            strict=True,
        ):
            before = [ids[i - 1] for i, here in enumerate(visual) if here and not visual[i - 1]]
            after = [ids[i + 1] for i, here in enumerate(visual) if here and not visual[i + 1]]
            overviews = [token == start for token in before]
            breaks = [token == row_end for token in after]
            views.append(_row_views(lengths, overviews, breaks))
        return tuple(views)


FAMILY = Ovis2()


def _row_views(
    lengths: Sequence[int], overviews: Sequence[bool], breaks: Sequence[bool]
) -> tuple[ViewGrid, ...]:
    """The views of a row of the batch; an image begins with its overview."""
    first = [at for at, is_overview in enumerate(overviews) if is_overview]
    views: list[ViewGrid] = []
    for image, at in enumerate(first):
        end = first[image + 1] if image + 1 < len(first) else len(lengths)
        views.append(whole_view(lengths[at], image))
        n_tiles, n_rows = end - at - 1, 1 + sum(breaks[at + 1 : end])
        if n_tiles % n_rows:
            views += [lost_view(n, image) for n in lengths[at + 1 : end]]
        elif n_tiles:
            views += tile_views(lengths[at + 1], n_rows, n_tiles // n_rows, image)
    return tuple(views)
