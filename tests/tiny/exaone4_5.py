"""EXAONE 4.5: a Qwen2.5-VL tower before an EXAONE 4 decoder, whose layers look through windows."""

from __future__ import annotations

from dataclasses import replace

import mrope
from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration, Exaone4Config
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    text = mrope.text(
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=12,
        sliding_window_pattern=4,  # every fourth layer sees all
    )
    config = Exaone4_5_Config(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "num_key_value_heads": 2,
            "patch_size": mrope.PATCH,
            "window_size": 4 * mrope.PATCH,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.1,
        },
        text_config=Exaone4Config(**text),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), typed=False)
    made = mrope.case("exaone4_5", Exaone4_5_ForConditionalGeneration, config, attn, writer)
    # Before transformers 5.11, it inherits a numbering by M-RoPE that its own decoder never gets.
    return replace(made, positions=None)
