"""Qwen3-VL: interleaved M-RoPE, DeepStack after layers 0, 1 and 2, time stamps between frames."""

from __future__ import annotations

import mrope
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case

VISION = {
    "depth": 4,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": mrope.PATCH,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
    "initializer_range": 0.1,
}


def build(attn: str) -> Case:
    config = Qwen3VLConfig(
        vision_config=VISION,
        text_config=mrope.text(head_dim=16),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), frames_apart=True)
    return mrope.case("qwen3_vl", Qwen3VLForConditionalGeneration, config, attn, writer)
