"""GLM-4.1V and its successors: the frames of a video are image tokens separated by time stamps."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from tpcal.plans.cost import DecoderShape
from tpcal.plans.images.views import AnySize


class Glm4v(AnySize):
    """Supports GLM-4.1V, GLM-4.5V, which has experts, and GLM-OCR, which has a smaller decoder.

    Source:
        GLM-V team 2025 (arXiv 2507.01006).
    """

    name = "glm4v"
    architectures = (
        "Glm4vForConditionalGeneration",
        "Glm4vMoeForConditionalGeneration",
        "Glm46VForConditionalGeneration",
        "GlmOcrForConditionalGeneration",
    )

    def shape(self, model: PreTrainedModel) -> DecoderShape:
        """Widths of the decoder; FLOPs count a token's experts, not the dense layers."""
        shape, text = super().shape(model), model.config.get_text_config(decoder=True)
        if not hasattr(text, "moe_intermediate_size"):
            return shape
        n_experts = text.num_experts_per_tok + text.n_shared_experts
        return replace(shape, ffn=n_experts * text.moe_intermediate_size)


FAMILY = Glm4v()
