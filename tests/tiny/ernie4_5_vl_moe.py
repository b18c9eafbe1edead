"""ERNIE-4.5-VL: experts of their own for visual tokens, two frames in one step of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import mrope
import torch
from torch import Tensor
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeImageProcessorPil,
)

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    rope = {"rope_type": "default", "mrope_section": [3, 3, 2]}  # rows, columns, time
    experts = {
        "rope_parameters": rope,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": [48, 32],
        "moe_num_shared_experts": 1,
    }
    config = Ernie4_5_VLMoeConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": mrope.PATCH,
            "initializer_range": 0.1,
        },
        text_config=mrope.text(tie_word_embeddings=False, **experts),
        tie_word_embeddings=False,
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        image_start_token_id=mrope.START,
        image_end_token_id=mrope.END,
        video_start_token_id=mrope.VIDEO_START,
        video_end_token_id=mrope.VIDEO_END,
    )
    writer = mrope.Writer(mrope.processor(Ernie4_5_VLMoeImageProcessorPil), patches_per_step=2)
    kind = Ernie4_5_VLMoeForConditionalGeneration
    case = mrope.case("ernie4_5_vl_moe", kind, config, attn, writer)
    return replace(case, rows=_routed(case.rows), videos=_routed(case.videos))


def _routed(rows: tuple[Mapping[str, Tensor], ...]) -> tuple[dict[str, Tensor], ...]:
    """The prompts with the token types of the experts: the tokens around an image belong to it."""
    around = torch.tensor([mrope.START, mrope.END])
    return tuple(
        {
            **row,
            "moe_mm_token_type_ids": row["mm_token_type_ids"]
            | torch.isin(row["input_ids"], around).long(),
        }
        for row in rows
    )
