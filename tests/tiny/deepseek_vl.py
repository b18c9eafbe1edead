"""DeepSeek-VL: one square of tokens for every image, nothing between two of them."""

from __future__ import annotations

import tiles
from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration

from tpcal.plans.laws import Case

VISION = {"model_type": "siglip_vision_model", **tiles.VISION, "vision_use_head": False}


def build(attn: str) -> Case:
    config = DeepseekVLConfig(
        vision_config={**VISION},
        text_config={"model_type": "llama", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
        tie_word_embeddings=False,
    )
    writer = tiles.Writer(tiles.one_size(36, start=(), end=()))
    return tiles.case("deepseek_vl", DeepseekVLForConditionalGeneration, config, attn, writer)
