"""Qwen3-Omni's thinker: Qwen3-VL-MoE that also hears; a video in one run, without time stamps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mrope
import torch
from torch import Tensor
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tiny.qwen3_vl import VISION
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    config = Qwen3OmniMoeThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "output_dim": 64,
            "downsample_hidden_size": 8,
        },
        vision_config=VISION,
        text_config=mrope.text(head_dim=16, **experts),
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        audio_token_id=11,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
        audio_start_token_id=12,
        audio_end_token_id=13,
        pad_token_id=mrope.PAD,
        initializer_range=0.15,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil), typed=False)
    kind = Qwen3OmniMoeThinkerForConditionalGeneration
    case = mrope.case("qwen3_omni_moe", kind, config, attn, writer)
    timed = tuple({**row, "video_second_per_grid": torch.tensor([1.0])} for row in case.videos)

    def positions(inputs: Any) -> Tensor:
        renamed = {"second_per_grids" if "second" in k else k: v for k, v in inputs.items()}
        return mrope.numbering(case.model)(renamed)

    return replace(case, videos=timed, positions=positions)
