"""GLM-4.1V and its successors: the frames of a video are image tokens separated by time stamps."""

from __future__ import annotations

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


FAMILY = Glm4v()
