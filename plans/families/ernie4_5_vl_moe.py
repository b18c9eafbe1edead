"""ERNIE-4.5-VL: visual tokens have separate experts, and two frames form one step of a video."""

from __future__ import annotations

from typing import Any

from tpcal.plans.images.views import AnySize


class Ernie45VL(AnySize):
    """Supports ERNIE-4.5-VL, whose decoder has experts for visual tokens.

    The tokens around an image are routed to these experts too.

    Source:
        ERNIE team, Baidu 2025 (technical report).
    """

    name = "ernie4_5_vl_moe"
    architectures = (
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Ernie4_5_VL_MoeForConditionalGeneration",
    )

    def ffn(self, text: Any) -> int:
        """Width of the experts that a visual token visits."""
        of_text, of_images = text.moe_intermediate_size
        return int(text.moe_k * of_images + text.moe_num_shared_experts * of_text)


FAMILY = Ernie45VL()
