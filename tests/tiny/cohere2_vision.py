"""Command A Vision: a line break behind each tile, a decoder with sliding and full layers."""

from __future__ import annotations

from collections.abc import Sequence

import tiles
from PIL import Image
from torch import Tensor
from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

from tiny.aya_vision import N_TOKENS, TEXT, VISION, cut
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Cohere2VisionConfig(
        vision_config=VISION,
        text_config=TEXT,
        alignment_intermediate_size=64,
        image_token_id=tiles.IMAGE,
    )
    kind = Cohere2VisionForConditionalGeneration
    return tiles.case("cohere2_vision", kind, config, attn, tiles.Writer(encode))


def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
    counts, inputs = cut(pictures)  # the model's own processor needs torchvision; this one does
    return [image(n) for n in counts], inputs  # the same: tiles in reading order, then the whole


def image(n_tiles: int) -> list[int]:
    """Tokens of an image."""
    return [tiles.START, *[*[tiles.IMAGE] * N_TOKENS, tiles.NEWLINE] * n_tiles, tiles.END]
