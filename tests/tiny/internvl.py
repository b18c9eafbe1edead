"""InternVL: tiles and an overview behind them in one run, four patches to a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiles
from PIL import Image
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile."""


def build(attn: str) -> Case:
    config = InternVLConfig(
        vision_config={**tiles.VISION},
        text_config={"model_type": "qwen2", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
        image_seq_length=N_TOKENS,
        tie_word_embeddings=False,
    )
    return tiles.case("internvl", InternVLForConditionalGeneration, config, attn, writer())


def writer() -> tiles.Writer:
    """Prompts in InternVL's form."""
    processor: Any = GotOcr2ImageProcessorPil(
        size={"height": tiles.SIDE, "width": tiles.SIDE}, crop_to_patches=True, max_patches=4
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        inputs = dict(processor(images=list(pictures), return_tensors="pt"))
        counts = inputs.pop("num_patches").tolist()
        written = [[tiles.START, *[tiles.IMAGE] * (N_TOKENS * n), tiles.END] for n in counts]
        return written, inputs

    return tiles.Writer(encode)
