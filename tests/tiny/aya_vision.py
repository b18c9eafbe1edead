"""Aya Vision: tiles with a marker before each, a decoder with sliding and full layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gemma
import tiles
from PIL import Image
from torch import Tensor
from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile: 6 x 6 patches, four to a token."""
TEXT: dict[str, Any] = {
    **gemma.sliding(gemma.NARROW),
    "model_type": "cohere2",
    "logit_scale": 0.5,
}
VISION: dict[str, Any] = {**tiles.VISION, "model_type": "siglip_vision_model"}


def build(attn: str) -> Case:
    config = AyaVisionConfig(
        vision_config={**VISION, "vision_use_head": False},
        text_config=TEXT,
        image_token_index=tiles.IMAGE,
    )
    kind = AyaVisionForConditionalGeneration
    return tiles.case("aya_vision", kind, config, attn, tiles.Writer(encode))


def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
    counts, inputs = cut(pictures)
    return [image(n) for n in counts], inputs


def cut(pictures: Sequence[Image.Image]) -> tuple[list[int], dict[str, Tensor]]:
    """How many tiles each picture gives, the whole of it counted, and their pixels."""
    processor: Any = GotOcr2ImageProcessorPil(
        size={"height": tiles.SIDE, "width": tiles.SIDE}, crop_to_patches=True, max_patches=4
    )
    inputs = dict(processor(images=list(pictures), return_tensors="pt"))
    return inputs.pop("num_patches").tolist(), inputs


def image(n_tiles: int) -> list[int]:
    """Tokens of an image: every tile with its number, the whole of it last."""
    run = [tiles.IMAGE] * N_TOKENS
    tokens = [tiles.START]
    for number in range(1, n_tiles):
        tokens += [tiles.TILE + number, *run]
    return [*tokens, tiles.WHOLE, *run, tiles.END]
