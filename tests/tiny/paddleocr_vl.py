"""PaddleOCR-VL: a SigLIP-like tower with images of any size, an Ernie decoder, no videos."""

from __future__ import annotations

from dataclasses import replace

import mrope
from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8 * mrope.PATCH,
            "patch_size": mrope.PATCH,
        },
        text_config=mrope.text(head_dim=16, tie_word_embeddings=False),
        tie_word_embeddings=False,
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(PaddleOCRVLImageProcessorPil))
    kind = PaddleOCRVLForConditionalGeneration
    return replace(mrope.case("paddleocr_vl", kind, config, attn, writer), videos=())
