"""GLM-4.1V: frames of a video are image tokens between time stamps."""

from __future__ import annotations

from typing import Any

import mrope
from transformers import Glm4vConfig, Glm4vForConditionalGeneration
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from tpcal.plans.laws import Case

VISION = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "image_size": 8 * mrope.PATCH,
    "patch_size": mrope.PATCH,
    "initializer_range": 0.1,
}
TOKENS = {
    "image_token_id": mrope.IMAGE,
    "video_token_id": mrope.VIDEO,
    "image_start_token_id": mrope.START,
    "image_end_token_id": mrope.END,
    "video_start_token_id": mrope.VIDEO_START,
    "video_end_token_id": mrope.VIDEO_END,
}


def build(attn: str) -> Case:
    config = Glm4vConfig(vision_config=VISION, text_config=mrope.text(), **TOKENS)
    return mrope.case("glm4v", Glm4vForConditionalGeneration, config, attn, writer())


def writer() -> mrope.Writer:
    """Prompts in GLM's form."""
    processor: Any = mrope.processor(Glm4vImageProcessorPil)
    return mrope.Writer(processor, frames_apart=True, video_id=mrope.IMAGE)
