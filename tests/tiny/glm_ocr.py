"""GLM-OCR: the prompts of GLM-4.1V before a smaller decoder."""

from __future__ import annotations

import mrope
from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration

from tiny.glm4v import TOKENS, VISION, writer
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = GlmOcrConfig(vision_config=VISION, text_config=mrope.text(head_dim=16), **TOKENS)
    return mrope.case("glm_ocr", GlmOcrForConditionalGeneration, config, attn, writer())
