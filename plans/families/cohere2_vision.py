"""Command A Vision and Aya Vision: each tile is a run of tokens, and the overview comes last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.families.base import run_lengths
from tpcal.plans.images.mosaic import Mosaic
from tpcal.plans.images.views import warn_of_runs


class Cohere2Vision(Mosaic):
    """Supports Command A Vision and Aya Vision, whose images are tiles with an overview.

    Source:
        Cohere 2025 (arXiv 2504.00698); Dash et al. 2025 (arXiv 2505.08751).
    """

    name = "cohere2_vision"
    architectures = ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration")

    def tile_side(self, model: PreTrainedModel) -> int:
        """Number of tokens along one side of a tile."""
        vision: Any = model.config.vision_config
        return vision.image_size // vision.patch_size // model.config.downsample_factor

    def tile_counts(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> list[list[int]]:
        """The tokens between runs show which runs form one image; without ids, each run is an
        image.

        The tiles of an image are separated by a single line break in Command A, and by a marker
        that is not the end of an image in Aya.
        """
        if "input_ids" not in inputs:
            warn_of_runs()
            return [[1] * len(lengths) for lengths in run_lengths(prompt.visual)]
        ids, by_end = inputs["input_ids"].tolist(), model.config.model_type == "aya_vision"
        return [
            _tiles_of_images(_gaps(row, visual), by_end)
            for row, visual in zip(ids, prompt.visual.tolist(), strict=True)
        ]


FAMILY = Cohere2Vision()


def _gaps(ids: Sequence[int], visual: Sequence[bool]) -> list[list[int]]:
    """The tokens after each run of visual tokens, up to the next run."""
    gaps: list[list[int]] = []
    for at, (token, is_visual) in enumerate(zip(ids, visual, strict=True)):
        if is_visual and (at == 0 or not visual[at - 1]):
            gaps.append([])
        elif not is_visual and gaps:
            gaps[-1].append(token)
    return gaps


def _tiles_of_images(gaps: Sequence[Sequence[int]], by_end: bool) -> list[int]:
    """Number of runs of each image of a row.

    Args:
        gaps: The result of `_gaps`; the last run ends an image.
        by_end: Whether every image ends with the token after the last run; otherwise an image ends
            where more than one token separates two runs.
    """
    counts, n = [], 0
    for gap in gaps:
        n += 1
        ends = gap[0] == gaps[-1][0] if by_end else len(gap) > 1 or gap is gaps[-1]
        if ends:
            counts.append(n)
            n = 0
    return counts
