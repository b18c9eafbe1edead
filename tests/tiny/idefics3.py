"""Idefics3: one run of tokens for each tile, with text that says which tile it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tiles
from PIL import Image
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile."""


def build(attn: str) -> Case:
    return tiles.case(
        "idefics3",
        Idefics3ForConditionalGeneration,
        Idefics3Config(**parts()),
        attn,
        writer(Idefics3ImageProcessorPil),
    )


def parts() -> dict[str, Any]:
    """What the config is made of."""
    return {
        "vision_config": {**tiles.VISION},
        "text_config": {"model_type": "llama", **tiles.TEXT},
        "image_token_id": tiles.IMAGE,
        "scale_factor": 2,
        "pad_token_id": tiles.PAD,
    }


def writer(kind: type[Any]) -> tiles.Writer:
    """Prompts in Idefics3's form."""
    processor = kind(
        size={"longest_edge": 2 * tiles.SIDE}, max_image_size={"longest_edge": tiles.SIDE}
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], Mapping[str, Tensor]]:
        inputs = dict(
            processor(images=[list(pictures)], return_row_col_info=True, return_tensors="pt")
        )
        shapes = zip(inputs.pop("rows")[0], inputs.pop("cols")[0], strict=True)
        return [image(int(rows), int(cols)) for rows, cols in shapes], inputs

    names = frozenset({"pixel_values", "pixel_attention_mask"})
    return tiles.Writer(encode, sizes=((24, 24), (24, 60), (50, 30), (60, 24)), per_row=names)


def image(rows: int, cols: int) -> list[int]:
    """Tokens of an image of rows x cols tiles and the whole of it behind; 0 x 0 is the whole."""
    run = [tiles.IMAGE] * N_TOKENS
    tokens: list[int] = []
    for row in range(rows):
        for col in range(cols):
            tokens += [tiles.START, tiles.TILE + 4 * row + col, *run]
        tokens.append(tiles.NEWLINE)
    tokens += [tiles.NEWLINE] if rows else []
    return [*tokens, tiles.START, tiles.WHOLE, *run, tiles.START]
