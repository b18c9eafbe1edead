"""VideoLLaMA3: grids of any size, a merge size for each, one position per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.families.base import Family
from tpcal.plans.images.views import IMAGE, VIDEO, AnySize, Size


class VideoLlama3(AnySize):
    """Supports VideoLLaMA3, without the compression of video tokens that its paper describes.

    Source:
        Zhang et al. 2025 (arXiv 2501.13106).
    """

    name = "video_llama_3"
    architectures = ("VideoLlama3ForConditionalGeneration",)
    numbered = Family.numbered

    def sizes(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[int, list[Size]]:
        """Sizes in tokens of all images and videos of the batch, in order, by kind."""
        sizes = {}
        for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
            grid, merges = inputs.get(f"{name}_grid_thw"), inputs.get(f"{name}_merge_sizes")
            if grid is not None and merges is not None:
                pairs = zip(grid.tolist(), merges.tolist(), strict=True)
                sizes[kind] = [(t, h // m, w // m) for (t, h, w), m in pairs]
        return sizes


FAMILY = VideoLlama3()
