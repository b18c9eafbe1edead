"""VideoLLaMA3: images of any size and videos before a Qwen2 decoder with plain positions."""

from __future__ import annotations

import mrope
from transformers import (
    Qwen2Config,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)
from transformers.models.video_llama_3.image_processing_pil_video_llama_3 import (
    VideoLlama3ImageProcessorPil,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    text = mrope.text(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    config = VideoLlama3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": mrope.PATCH,
            "initializer_range": 0.1,
        },
        text_config=Qwen2Config(**text),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
    )
    processor = mrope.processor(VideoLlama3ImageProcessorPil)
    writer = mrope.Writer(processor, typed=False, merge_sizes=True)
    kind = VideoLlama3ForConditionalGeneration
    return mrope.case("video_llama_3", kind, config, attn, writer)
