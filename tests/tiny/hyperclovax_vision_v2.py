"""HyperCLOVA X Vision: a Qwen2.5-VL tower before plain positions, and logits multiplied by 4."""

from __future__ import annotations

import mrope
from transformers import HyperCLOVAXVisionV2Config, HyperCLOVAXVisionV2ForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = HyperCLOVAXVisionV2Config(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": mrope.PATCH,
            "window_size": 4 * mrope.PATCH,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        text_config=mrope.text(
            rope_parameters=rope, tie_word_embeddings=False, logits_scaling=4.0
        ),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        tie_word_embeddings=False,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), typed=False)
    kind = HyperCLOVAXVisionV2ForConditionalGeneration
    return mrope.case("hyperclovax_vision_v2", kind, config, attn, writer)
