"""Qwen3-Omni's thinker: Qwen3-VL-MoE that also hears; a video in one run, without time stamps."""

from __future__ import annotations

import mrope
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny.qwen3_vl import VISION
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = Qwen3OmniMoeThinkerConfig(
        audio_config={**mrope.AUDIO, "downsample_hidden_size": 8},
        vision_config=VISION,
        text_config=mrope.text(head_dim=16, **experts),
        **mrope.HEARING,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), typed=False)
    kind = Qwen3OmniMoeThinkerForConditionalGeneration
    return mrope.timed(mrope.case("qwen3_omni_moe", kind, config, attn, writer))
