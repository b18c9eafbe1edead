"""Kimi K2.5: images of any size, a chunk of a video pooled into one frame, latent attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mrope
import torch
from torch import Tensor
from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration

from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = mrope.text(
        rope_parameters=rope,
        initializer_range=0.1,
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=48,
        tie_word_embeddings=False,
    )
    config = Kimi_K25Config(
        vision_config={
            "patch_size": mrope.PATCH,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
        },
        text_config=DeepseekV3Config(**text),
        projection_hidden_size=32,
        image_token_id=mrope.IMAGE,
        video_token_id=mrope.VIDEO,
        vision_start_token_id=mrope.START,
        vision_end_token_id=mrope.END,
        tie_word_embeddings=False,
    )
    case = mrope.case(
        "kimi_k25", Kimi_K25ForConditionalGeneration, config, attn, _Writer(None, typed=False)
    )
    return replace(case, videos=())


class _Writer(mrope.Writer):
    """Patches [n, 3, 4, 4], as its image processor, which needs torchvision, gives them."""

    def _images(self, sizes: Any, generator: Any) -> dict[str, Tensor]:
        grid = torch.tensor([[1, mrope.MERGE * h, mrope.MERGE * w] for h, w in sizes])
        n = int(grid.prod(dim=1).sum())
        pixels = torch.randn(n, 3, mrope.PATCH, mrope.PATCH, generator=generator)
        return {"pixel_values": pixels, "image_grid_thw": grid}

    def _videos(self, sizes: Any, generator: Any) -> dict[str, Tensor]:
        return {}
