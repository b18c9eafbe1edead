"""Granite-Docling: Idefics3's tiles with DeepStack after the first layers; no overview of one tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tiles
from PIL import Image
from torch import Tensor
from transformers import GraniteDoclingConfig, GraniteDoclingForConditionalGeneration
from transformers.models.granite_docling.image_processing_pil_granite_docling import (
    GraniteDoclingImageProcessorPil,
)

from tpcal.plans.laws import Case

N_TOKENS = 4
"""Tokens of a tile of 8 x 8 patches, shuffled four by four."""
PIXELS = 32


def build(attn: str) -> Case:
    config = GraniteDoclingConfig(
        vision_config={
            **tiles.VISION,
            "num_hidden_layers": 4,
            "image_size": PIXELS,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "use_fine_route": False,
        },
        text_config={
            **tiles.TEXT,
            "embedding_multiplier": 1.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 0.25,
            "tie_word_embeddings": False,
        },
        image_token_id=tiles.IMAGE,
        tie_word_embeddings=False,
        pad_token_id=tiles.PAD,
    )
    kind = GraniteDoclingForConditionalGeneration
    return tiles.case("granite_docling", kind, config, attn, _writer())


def _writer() -> tiles.Writer:
    processor: Any = GraniteDoclingImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS}, max_patches=4
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], Mapping[str, Tensor]]:
        inputs = dict(processor(images=[list(pictures)], return_tensors="pt"))
        shapes = zip(inputs.pop("rows")[0], inputs.pop("cols")[0], strict=True)
        return [_image(int(rows), int(cols)) for rows, cols in shapes], inputs

    names = frozenset({"pixel_values", "pixel_attention_mask"})
    return tiles.Writer(encode, sizes=((32, 32), (32, 80), (66, 40), (96, 32)), per_row=names)


def _image(rows: int, cols: int) -> list[int]:
    run = [tiles.IMAGE] * N_TOKENS
    tokens: list[int] = []
    for row in range(rows):
        for col in range(cols):
            tokens += [tiles.START, tiles.TILE + 4 * row + col, *run]
        tokens.append(tiles.NEWLINE)
    if rows * cols > 1:
        tokens += [tiles.NEWLINE, tiles.START, tiles.WHOLE, *run, tiles.START]
    return tokens
