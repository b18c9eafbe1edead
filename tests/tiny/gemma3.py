"""Gemma 3: sliding and full layers; image tokens see all of their image."""

from __future__ import annotations

import gemma
import tiles
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    return windowed("gemma3", attn, gemma.NARROW)


def windowed(name: str, attn: str, window: int) -> Case:
    """The model with a window of so many positions."""
    case = tiles.case(name, Gemma3ForConditionalGeneration, config(window), attn, writer())
    return gemma.typed(case, "token_type_ids")


def config(window: int) -> Gemma3Config:
    """4 x 4 tokens an image."""
    return Gemma3Config(
        vision_config=gemma.TOWER,
        text_config={**gemma.sliding(window), "query_pre_attn_scalar": 16},
        mm_tokens_per_image=16,
        boi_token_index=tiles.START,
        eoi_token_index=tiles.END,
        image_token_index=tiles.IMAGE,
        initializer_range=0.15,
    )


def writer() -> tiles.Writer:
    """Prompts in Gemma 3's form: line breaks around every image."""
    return gemma.squares(gemma.SIDE, 16, (tiles.NEWLINE, tiles.START), (tiles.END, tiles.NEWLINE))
