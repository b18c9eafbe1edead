"""Qwen3-VL-MoE: as Qwen3-VL, with experts."""

from __future__ import annotations

import mrope
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny.qwen3_vl import VISION
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = Qwen3VLMoeConfig(
        vision_config=VISION,
        text_config=mrope.text(head_dim=16, **experts),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), frames_apart=True)
    return mrope.case("qwen3_vl_moe", Qwen3VLMoeForConditionalGeneration, config, attn, writer)
