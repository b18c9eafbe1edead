"""PerceptionLM: a thumbnail and tiles, pooled, in one run; CLIP for its tower, which needs timm."""

from __future__ import annotations

from typing import Any

import torch
from pictures import BOS, IMAGE, N_TOWER, PAD, SIDE, TEXT, TOWER, VIDEO, random_model
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
)

from tpcal.plans.laws import Case

WORD, VOCAB = 16, 120
N_TILES = 3  # of every image: the model takes only batches in which they have equally many
N_IMAGE = N_TILES * N_TOWER // 4


def build(attn: str) -> Case:
    vision = CLIPVisionConfig(**TOWER)
    vision.model_args = {"embed_dim": TOWER["hidden_size"]}  # as timm's towers name it
    config = PerceptionLMConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )
    model = random_model(PerceptionLMForConditionalGeneration, config, attn)
    rows = (_row(3, 0, 4), _row(2, 0, 3, 0, 5, seed=1), _row(7, seed=2), _row(1, 0, 11, seed=3))
    return Case("perception_lm", model, rows, pad_id=PAD)


def _row(*parts: int, seed: int = 0) -> dict[str, Tensor]:
    """A prompt of so many words; 0 is an image."""
    generator = torch.Generator().manual_seed(seed)
    ids = [BOS]
    for n in parts:
        words = torch.randint(WORD, VOCAB, (n,), generator=generator).tolist()
        ids += words or [IMAGE] * N_IMAGE
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if 0 in parts:
        shape = (parts.count(0), N_TILES, 3, SIDE, SIDE)
        inputs["pixel_values"] = torch.randn(shape, generator=generator)
    return inputs
