"""SmolVLM: Idefics3 with videos, each frame an image with its time before it."""

from __future__ import annotations

from dataclasses import replace

import tiles
import torch
from torch import Tensor
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tiny.idefics3 import image, parts, writer
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    case = tiles.case(
        "smolvlm",
        SmolVLMForConditionalGeneration,
        SmolVLMConfig(**parts()),
        attn,
        writer(SmolVLMImageProcessorPil),
    )
    return replace(case, videos=(_video(2, seed=4), _video(3, seed=5)))


def _video(n_frames: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = [tiles.BOS, *tiles.words(3, generator)]
    for _ in range(n_frames):
        ids += [*tiles.words(4, generator), *image(0, 0)]
    ids += tiles.words(5, generator)
    tokens = torch.tensor([ids])
    frames = [tiles.picture(30, 40, generator) for _ in range(n_frames)]
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": tiles.pixels(frames, tiles.SIDE)[None],
        "pixel_attention_mask": torch.ones(1, n_frames, tiles.SIDE, tiles.SIDE).long(),
    }
