"""Gemma 4, large: image tokens see all of their image in sliding layers; experts beside the FFN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gemma
import tiles
import torch
from PIL import Image
from torch import Tensor
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

from tpcal.plans.laws import Case

CELL = 12
"""Pixels along a token: 3 x 3 patches of 4 pixels."""
SIZES = ((36, 48), (24, 60), (48, 36), (36, 72))
"""Height and width of the images: 12, 10, 12 and 18 tokens."""
AUDIO = 11

TEXT: dict[str, Any] = {
    **gemma.sliding(gemma.NARROW),
    "global_head_dim": 32,
    "vocab_size_per_layer_input": tiles.VOCAB,
    "final_logit_softcapping": 10.0,
    "rms_norm_eps": 1e-2,  # or norms of the small inputs per layer are mostly rounding
}
"""Text part of both configs."""


def build(attn: str) -> Case:
    experts = {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    }
    sides = {"num_global_key_value_heads": 1, "attention_k_eq_v": True}
    text = {**TEXT, **experts, **sides, "hidden_size_per_layer_input": 0}
    return with_text("gemma4", attn, {**text, "use_bidirectional_attention": "vision"})


def with_text(name: str, attn: str, text: Mapping[str, Any]) -> Case:
    """The model with this decoder."""
    vision = {
        **{k: v for k, v in tiles.VISION.items() if k != "image_size"},
        "num_key_value_heads": 2,
        "head_dim": 16,
        "position_embedding_size": 32,
    }
    config = Gemma4Config(
        vision_config=vision,
        text_config=dict(text),
        image_token_id=tiles.IMAGE,
        video_token_id=tiles.VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=tiles.START,
        eoi_token_id=tiles.END,
    )
    writer = tiles.Writer(_encode, sizes=SIZES)
    case = tiles.case(name, Gemma4ForConditionalGeneration, config, attn, writer)
    for layer in case.model.get_decoder().layers:
        layer.self_attn.q_norm.weight.data.fill_(0.25)  # untrained, scores turn on rounding
    case = gemma.typed(case, "mm_token_type_ids")
    return replace(case, videos=(_film(2, (2, 2, 3), 4, seed=4), _film(3, (3, 3, 2), 5, seed=5)))


def _encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], Mapping[str, Tensor]]:
    processor: Any = Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, do_resize=False)
    inputs = dict(processor(images=list(pictures), return_tensors="pt"))
    counts = torch.as_tensor(inputs.pop("num_soft_tokens_per_image")).tolist()
    return [[tiles.START, *[tiles.IMAGE] * n, tiles.END] for n in counts], inputs


def _film(before: int, shape: tuple[int, int, int], behind: int, seed: int) -> dict[str, Tensor]:
    """A prompt with a video of (steps, rows, columns) tokens, a time stamp before each frame."""
    steps, n_rows, n_cols = shape
    generator = torch.Generator().manual_seed(seed)
    ids = [tiles.BOS, *tiles.words(before, generator)]
    for step in range(steps):
        ids += [tiles.TILE + step, tiles.START, *[tiles.VIDEO] * (n_rows * n_cols), tiles.END]
    tokens = torch.tensor([[*ids, *tiles.words(behind, generator)]])
    place = torch.arange(9 * n_rows * n_cols)
    where = torch.stack([place % (3 * n_cols), place // (3 * n_cols)], dim=-1)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": 2 * (tokens == tiles.VIDEO).long(),
        "pixel_values_videos": torch.rand(steps, len(place), 48, generator=generator),
        "video_position_ids": where.expand(steps, -1, -1).clone(),
        "num_frames_per_video": torch.tensor([steps]),
    }
