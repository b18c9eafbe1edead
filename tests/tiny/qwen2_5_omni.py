"""Qwen2.5-Omni's thinker: Qwen2.5-VL that also hears; sounds are text to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mrope
import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "output_dim": 64,
        },
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
    kind = Qwen2_5OmniThinkerForConditionalGeneration
    case = mrope.case("qwen2_5_omni", kind, config, attn, writer)
    timed = tuple({**row, "video_second_per_grid": torch.tensor([1.0])} for row in case.videos)

    def positions(inputs: Any) -> Tensor:
        renamed = {"second_per_grids" if "second" in k else k: v for k, v in inputs.items()}
        return mrope.numbering(case.model)(renamed)

    return replace(case, videos=timed, positions=positions)
