"""Qwen2-VL: images of any size, M-RoPE, a video in one run of tokens."""

from __future__ import annotations

import mrope
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": mrope.PATCH,
            "initializer_range": 0.1,
        },
        text_config=mrope.text(),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil))
    return mrope.case("qwen2_vl", Qwen2VLForConditionalGeneration, config, attn, writer)
