"""Qwen2-VL, Qwen2.5-VL and what is built like them: M-RoPE, a video in one run of tokens."""

from __future__ import annotations

from tpcal.plans.views import AnySize


class Qwen2VL(AnySize):
    """Wang et al. 2024 (arXiv 2409.12191), Bai et al. 2025 (arXiv 2502.13923).

    PaddleOCR-VL (Cui et al. 2025, arXiv 2510.14528) has another tower and decoder, but the same
    grids and positions.
    """

    name = "qwen2_vl"
    architectures = (
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "PaddleOCRVLForConditionalGeneration",
    )


FAMILY = Qwen2VL()
