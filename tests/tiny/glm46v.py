"""GLM-4.6V: the decoder of GLM-4.1V under another class."""

from __future__ import annotations

import mrope
from transformers import Glm4vTextConfig, Glm46VConfig, Glm46VForConditionalGeneration

from tiny.glm4v import TOKENS, VISION, writer
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Glm46VConfig(
        vision_config={"model_type": "glm4v_vision", **VISION},
        text_config=Glm4vTextConfig(**mrope.text()),
        **TOKENS,
    )
    return mrope.case("glm46v", Glm46VForConditionalGeneration, config, attn, writer())
