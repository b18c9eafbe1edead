"""Command A Vision and Aya Vision: a run of tokens for each tile, the overview last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.families.base import run_lengths
from tpcal.plans.images.mosaic import Mosaic


class Cohere2Vision(Mosaic):
    """Cohere 2025 (arXiv 2504.00698), Dash et al. 2025 (arXiv 2505.08751)."""

    name = "cohere2_vision"
    architectures = ("AyaVisionForConditionalGeneration", "Cohere2VisionForConditionalGeneration")

    def tile_side(self, model: PreTrainedModel) -> int:
        """Tokens along a tile."""
        vision: Any = model.config.vision_config
        return vision.image_size // vision.patch_size // model.config.downsample_factor

    def tile_counts(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> list[list[int]]:
        """The tokens between runs tell which runs are one image; without ids each is its own.

        A line break alone stands between the tiles of Command A, a marker without the end of the
        image between those of Aya.
        """
        if "input_ids" not in inputs:
            return [[1] * len(lengths) for lengths in run_lengths(prompt.visual)]
        ids, by_end = inputs["input_ids"].tolist(), model.config.model_type == "aya_vision"
        return [
            _tiles_of_images(_gaps(row, visual), by_end)
            for row, visual in zip(ids, prompt.visual.tolist(), strict=True)
        ]


FAMILY = Cohere2Vision()


def _gaps(ids: Sequence[int], visual: Sequence[bool]) -> list[list[int]]:
    """The tokens behind each run of visual tokens, up to the next one."""
    gaps: list[list[int]] = []
    for at, (token, is_visual) in enumerate(zip(ids, visual, strict=True)):
        if is_visual and (at == 0 or not visual[at - 1]):
            gaps.append([])
        elif not is_visual and gaps:
            gaps[-1].append(token)
    return gaps


def _tiles_of_images(gaps: Sequence[Sequence[int]], by_end: bool) -> list[int]:
    """How many runs each image of a row has.

    Args:
        gaps: As from `_gaps`; the last run ends an image.
        by_end: The token behind the last run ends every image; otherwise more than one token does.
    """
    counts, n = [], 0
    for gap in gaps:
        n += 1
        ends = gap[0] == gaps[-1][0] if by_end else len(gap) > 1 or gap is gaps[-1]
        if ends:
            counts.append(n)
            n = 0
    return counts
