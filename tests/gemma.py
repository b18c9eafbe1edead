"""What the tiny models of Gemma's kin share: windows, token types, one size of image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import tiles
import torch
from PIL import Image
from torch import Tensor

from tpcal.plans.laws import Case

SLIDING, FULL = "sliding_attention", "full_attention"
LAYERS = [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING, FULL]
"""Kinds of the 8 layers."""
NARROW, WIDE = 24, 200
"""Windows that most prompts exceed, and that none reaches."""
SIDE = 32
"""Pixels along an image: 8 x 8 patches."""
TOWER: dict[str, Any] = {**tiles.VISION, "image_size": SIDE, "vision_use_head": False}
"""A SigLIP tower."""


def sliding(window: int) -> dict[str, Any]:
    """Text part of a config with a window of so many positions."""
    return {
        **tiles.TEXT,
        "head_dim": 16,
        "layer_types": list(LAYERS),
        "sliding_window": window,
    }


def squares(
    side: int, n_tokens: int, before: Sequence[int] = (), behind: Sequence[int] = ()
) -> tiles.Writer:
    """Prompts of a model in which every image has ``side`` pixels and ``n_tokens`` tokens."""

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        tokens = [*before, *[tiles.IMAGE] * n_tokens, *behind]
        return [tokens] * len(pictures), {"pixel_values": tiles.pixels(pictures, side)}

    return tiles.Writer(encode)


def typed(case: Case, name: str) -> Case:
    """The case with token types as the processor gives them: 1 at image tokens, 0 elsewhere."""
    rows = tuple({**row, name: (row["input_ids"] == tiles.IMAGE).long()} for row in case.rows)
    return replace(case, rows=rows)


def numbered_from_one(inputs: Any) -> Tensor:
    """[B, S] position ids of PaliGemma."""
    return (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0) + torch.tensor(1)
