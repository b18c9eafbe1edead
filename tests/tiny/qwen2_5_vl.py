"""Qwen2.5-VL: windows in the tower, M-RoPE with real time in videos."""

from __future__ import annotations

from dataclasses import replace

import mrope
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    config = Qwen2_5_VLConfig(
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
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
    )
    writer = mrope.Writer(mrope.processor(Qwen2VLImageProcessorPil))
    case = mrope.case("qwen2_5_vl", Qwen2_5_VLForConditionalGeneration, config, attn, writer)
    second, half = torch.tensor([1.0]), torch.tensor([0.5])  # of one step
    timed = [
        {**row, "second_per_grid_ts": interval}
        for row, interval in zip(case.videos, (second, half), strict=True)
    ]
    return replace(case, videos=tuple(timed))
