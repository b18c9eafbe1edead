"""Janus: one square of tokens for every image it reads; what it draws is left alone."""

from __future__ import annotations

import tiles
from transformers import JanusConfig, JanusForConditionalGeneration

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = JanusConfig(
        vision_config={**tiles.VISION, "projection_dim": 64, "num_image_tokens": 36},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
        },
        text_config={"model_type": "llama", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
        tie_word_embeddings=False,
    )
    writer = tiles.Writer(tiles.one_size(36))
    return tiles.case("janus", JanusForConditionalGeneration, config, attn, writer)
