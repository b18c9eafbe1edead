"""PaliGemma: the whole prompt sees both ways, answers are causal, positions start at 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gemma
import tiles
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    text = {**tiles.TEXT, "model_type": "gemma", "head_dim": 16}
    return prefixed("paligemma", attn, text)


SIDE = 16
"""Pixels along an image: 4 x 4 patches, each a token."""


def prefixed(name: str, attn: str, text: dict[str, Any]) -> Case:
    """The model with this decoder."""
    config = PaliGemmaConfig(
        vision_config={**gemma.TOWER, "image_size": SIDE},
        text_config=text,
        image_token_index=tiles.IMAGE,
        projection_dim=64,
        hidden_size=64,
        vocab_size=tiles.VOCAB,
    )
    kernels = {"": "sdpa", "text_config": attn}
    writer = gemma.squares(SIDE, 16)
    case = tiles.case(name, PaliGemmaForConditionalGeneration, config, kernels, writer)
    rows = tuple(
        {**row, "token_type_ids": torch.zeros_like(row["input_ids"])} for row in case.rows
    )
    return replace(
        case, rows=rows, positions=gemma.numbered_from_one, appended={"token_type_ids": 1}
    )
