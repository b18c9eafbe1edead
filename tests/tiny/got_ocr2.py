"""GOT-OCR2: a SAM tower, convolutions down to 1/16 of the patches, one image or its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiles
from PIL import Image
from torch import Tensor
from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tpcal.plans.laws import Case

N_TOKENS = 9
"""Tokens of a tile: 12 x 12 patches, halved twice."""
PIXELS = 48


def build(attn: str) -> Case:
    config = GotOcr2Config(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": PIXELS,
            "patch_size": 4,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
            "initializer_range": 0.1,
        },
        text_config={"model_type": "qwen2", **tiles.TEXT},
        image_token_index=tiles.IMAGE,
        image_seq_length=N_TOKENS,
        tie_word_embeddings=False,
    )
    kernels = {"": "eager", "text_config": attn}  # the tower knows no other
    return tiles.case("got_ocr2", GotOcr2ForConditionalGeneration, config, kernels, _writer())


def _writer() -> tiles.Writer:
    processor: Any = GotOcr2ImageProcessorPil(
        size={"height": PIXELS, "width": PIXELS}, crop_to_patches=True, max_patches=4
    )

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        inputs = dict(processor(images=list(pictures), return_tensors="pt"))
        counts = inputs.pop("num_patches").tolist()
        return [[tiles.START, *[tiles.IMAGE] * (N_TOKENS * n), tiles.END] for n in counts], inputs

    return tiles.Writer(encode)
