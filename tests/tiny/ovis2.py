"""Ovis2: visual tokens are mixtures of a visual vocabulary; separators come from it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiles
from PIL import Image
from torch import Tensor
from transformers import Ovis2Config, Ovis2ForConditionalGeneration
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile."""
START, GRID, COLUMN, ROW, END = range(10, 15)
"""Indicators: before the overview, before the tiles, between them, between their rows, at the end."""


def build(attn: str) -> Case:
    config = Ovis2Config(
        vision_config={**tiles.VISION, "vocab_size": 48, "hidden_stride": 2},
        text_config={"model_type": "qwen2", **tiles.TEXT},
        image_token_id=tiles.IMAGE,
        visual_indicator_token_ids=[START, GRID, COLUMN, ROW, END],
        vocab_size=tiles.VOCAB,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    return tiles.case("ovis2", Ovis2ForConditionalGeneration, config, attn, writer())


def writer() -> tiles.Writer:
    """Prompts in Ovis2's form."""
    processor: Any = Ovis2ImageProcessorPil(
        size={"height": tiles.SIDE, "width": tiles.SIDE}, crop_to_patches=True, max_patches=4
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        inputs = dict(processor(images=list(pictures), return_tensors="pt"))
        return [_image(*shape) for shape in inputs.pop("grids").tolist()], inputs

    return tiles.Writer(encode)


def _image(rows: int, cols: int) -> list[int]:
    run = [tiles.IMAGE] * N_TOKENS
    tokens = [START, *run, GRID]
    if rows * cols > 1:
        for row in range(rows):
            for col in range(cols):
                tokens += [*run, COLUMN] if col < cols - 1 else run
            tokens += [ROW] if row < rows - 1 else []
    return [*tokens, END]
