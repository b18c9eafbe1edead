"""Idefics2: a resampler makes as many tokens of every image, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence

import tiles
from PIL import Image
from torch import Tensor
from transformers import Idefics2Config, Idefics2ForConditionalGeneration
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 16
"""Latents of the resampler."""


def build(attn: str) -> Case:
    config = Idefics2Config(
        vision_config={**tiles.VISION, "image_size": 2 * tiles.SIDE},
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": N_TOKENS,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "initializer_range": 0.15,
        },
        text_config={"model_type": "mistral", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
    )
    return tiles.case("idefics2", Idefics2ForConditionalGeneration, config, attn, writer())


def writer() -> tiles.Writer:
    """Prompts in Idefics2's form; images may have padding."""
    processor = Idefics2ImageProcessorPil(
        size={"shortest_edge": tiles.SIDE, "longest_edge": 2 * tiles.SIDE}
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        inputs = dict(processor(images=[list(pictures)], return_tensors="pt"))
        tokens = [tiles.START, *[tiles.IMAGE] * N_TOKENS, tiles.START]
        return [tokens] * len(pictures), inputs

    names = frozenset({"pixel_values", "pixel_attention_mask"})
    return tiles.Writer(encode, per_row=names)
