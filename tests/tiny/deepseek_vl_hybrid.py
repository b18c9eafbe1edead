"""DeepSeek-VL with a second tower that sees the image in more pixels."""

from __future__ import annotations

from collections.abc import Sequence

import tiles
from PIL import Image
from torch import Tensor
from transformers import DeepseekVLHybridConfig, DeepseekVLHybridForConditionalGeneration

from tiny.deepseek_vl import VISION
from tpcal.plans.laws import Case

PIXELS = 96
"""Along the image for the second tower."""


def build(attn: str) -> Case:
    config = DeepseekVLHybridConfig(
        vision_config={**VISION},
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": PIXELS,
            "patch_size": 4,
            "window_size": 4,
            "global_attn_indexes": [0],
            "mlp_dim": 64,
        },
        text_config={"model_type": "llama", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
        tie_word_embeddings=False,
    )
    kind = DeepseekVLHybridForConditionalGeneration
    return tiles.case("deepseek_vl_hybrid", kind, config, attn, tiles.Writer(_encode))


def _encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
    return [[tiles.IMAGE] * 36] * len(pictures), {
        "pixel_values": tiles.pixels(pictures, tiles.SIDE),
        "high_res_pixel_values": tiles.pixels(pictures, PIXELS),
    }
