"""Kimi K2.5: images of any size, chunks of videos pooled into frames, one position per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedModel

from tpcal.plans.families.base import Family
from tpcal.plans.images.views import IMAGE, VIDEO, AnySize, Size


class KimiK25(AnySize):
    """Supports Kimi K2.5, whose vision tower is that of Kimi-VL.

    Source:
        Moonshot AI 2026 (model card); Kimi team 2025 (arXiv 2504.07491).
    """

    name = "kimi_k25"
    architectures = ("Kimi_K25ForConditionalGeneration",)
    since: ClassVar[Mapping[str, str]] = {"Kimi_K25ForConditionalGeneration": "5.15"}
    numbered = Family.numbered

    def sizes(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[int, list[Size]]:
        """Sizes in tokens by kind; the frames of a chunk are averaged into one step."""
        down, across = model.config.vision_config.merge_kernel_size
        grids = {IMAGE: inputs.get("image_grid_thw"), VIDEO: inputs.get("video_grid_thw")}
        return {
            kind: [(1, h // down, w // across) for _, h, w in grid.tolist()]
            for kind, grid in grids.items()
            if grid is not None
        }


FAMILY = KimiK25()
