"""Qwen2.5-Omni's thinker: Qwen2.5-VL that also hears; sounds are text to a plan."""

from __future__ import annotations

import mrope
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Qwen2_5OmniThinkerConfig(
        audio_config={**mrope.AUDIO},
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
        text_config=mrope.text(),
        **mrope.HEARING,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), typed=False)
    kind = Qwen2_5OmniThinkerForConditionalGeneration
    return mrope.timed(mrope.case("qwen2_5_omni", kind, config, attn, writer))
