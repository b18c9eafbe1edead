"""Qwen2-VL, Qwen2.5-VL and similar models: M-RoPE, and a video is one run of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.images.tower import Tower, merged_blocks
from tpcal.plans.images.views import AnySize


class Qwen2VL(AnySize):
    """Supports Qwen2-VL, Qwen2.5-VL, the thinker of Qwen2.5-Omni, and PaddleOCR-VL.

    The thinker of Qwen2.5-Omni also accepts sound, whose tokens count as text. PaddleOCR-VL has
    another tower and decoder, but the same grids and positions.

    Source:
        Wang et al. 2024 (arXiv 2409.12191); Bai et al. 2025 (arXiv 2502.13923); Xu et al. 2025
        (arXiv 2503.20215); Cui et al. 2025 (arXiv 2510.14528).
    """

    name = "qwen2_vl"
    architectures = (
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "PaddleOCRVLForConditionalGeneration",
    )

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower with its last layer; the tower of PaddleOCR-VL is not supported."""
        base: Any = model.base_model
        blocks = getattr(base.visual, "blocks", None)
        return None if blocks is None else Tower(blocks[-1].attn)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """A visual token is made from a block of neighbouring patches."""
        return merged_blocks(model, patches, inputs)


FAMILY = Qwen2VL()
