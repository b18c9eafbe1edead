"""Llama 4: chunks of positions, full layers without rotary tables, experts; tiles in a raster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tiles
import torch
import transformers
from PIL import Image
from releases import skip_elsewhere
from torch import Tensor
from transformers import Llama4Config, Llama4ForConditionalGeneration

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile: 6 x 6 patches, four to a token."""
NEXT_TILE, NEXT_ROW = 12, 13
"""Stand between the tiles of a row and behind every row of tiles."""


def build(attn: str) -> Case:
    return scaled("llama4", attn)


def scaled(name: str, attn: str, **text: Any) -> Case:
    """The model with further settings of its decoder."""
    if transformers.__version__ == "5.24.0":
        skip_elsewhere("its Llama 4 does not run, with or without a plan")
    config = Llama4Config(
        vision_config={
            **tiles.VISION,
            "intermediate_size": 128,
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
        text_config={
            **tiles.TEXT,
            "head_dim": 16,
            "intermediate_size": 48,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 24,
            **text,
        },
        boi_token_index=tiles.START,
        eoi_token_index=tiles.END,
        image_token_index=tiles.IMAGE,
    )
    return tiles.case(name, Llama4ForConditionalGeneration, config, attn, writer())


def writer() -> tiles.Writer:
    """Prompts in Llama 4's form."""

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], Mapping[str, Tensor]]:
        shapes = [(round(p.height / tiles.SIDE), round(p.width / tiles.SIDE)) for p in pictures]
        pixels = [cut(p, *shape) for p, shape in zip(pictures, shapes, strict=True)]
        return [image(*shape) for shape in shapes], {"pixel_values": torch.cat(pixels)}

    return tiles.Writer(encode, sizes=((24, 24), (24, 48), (48, 24), (48, 48)))


def image(n_rows: int, n_cols: int) -> list[int]:
    """Tokens of an image of rows x cols tiles and the whole of it behind."""
    run = [tiles.IMAGE] * N_TOKENS
    tokens = [tiles.START]
    if n_rows * n_cols > 1:
        row = [*[*run, NEXT_TILE] * (n_cols - 1), *run, NEXT_ROW]
        tokens += row * n_rows
    return [*tokens, tiles.WHOLE, *run, tiles.END]


def cut(picture: Image.Image, n_rows: int, n_cols: int) -> Tensor:
    """[n, 3, side, side]: the tiles in reading order, and the whole where there are several."""
    side = tiles.SIDE
    large = picture.resize((side * n_cols, side * n_rows))
    parts = [
        large.crop((side * x, side * y, side * (x + 1), side * (y + 1)))
        for y in range(n_rows)
        for x in range(n_cols)
    ]
    return tiles.pixels([*parts, picture] if len(parts) > 1 else [picture], side)
