"""Qianfan-OCR: InternVL's tiles before a Qwen3 decoder."""

from __future__ import annotations

import tiles
from transformers import QianfanOCRConfig, QianfanOCRForConditionalGeneration

from tiny.internvl import writer
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = QianfanOCRConfig(
        vision_config={**tiles.VISION, "drop_path_rate": 0.0},
        text_config={"model_type": "qwen3", **tiles.TEXT, "head_dim": 16},
        image_token_id=tiles.IMAGE,
        tie_word_embeddings=False,
    )
    return tiles.case("qianfan_ocr", QianfanOCRForConditionalGeneration, config, attn, writer())
