"""Aria: a resampler makes a fixed number of tokens of every crop; experts in the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import tiles
import torch
from PIL import Image
from torch import Tensor
from transformers import AriaConfig, AriaForConditionalGeneration, AriaTextConfig

from tpcal.plans.laws import Case

N_TOKENS = 16
"""Queries of the resampler."""


def build(attn: str) -> Case:
    config = AriaConfig(
        vision_config={"model_type": "idefics3_vision", **tiles.VISION},
        # Before transformers 5.20, a dict without a model type stays a dict.
        text_config=AriaTextConfig(
            **{**tiles.TEXT, "intermediate_size": 48},
            moe_num_experts=4,
            moe_topk=2,
            moe_num_shared_experts=1,
        ),
        projector_patch_to_query_dict={36: N_TOKENS},
        image_token_index=tiles.IMAGE,
        initializer_range=0.15,
    )
    case = tiles.case("aria", AriaForConditionalGeneration, config, attn, tiles.Writer(_encode))
    query = case.model.get_parameter("model.multi_modal_projector.query")
    torch.nn.init.normal_(query, generator=torch.Generator().manual_seed(1))  # zeros else
    return case


def _encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
    """The longer side fills the square, the rest is padding."""
    values = torch.zeros(len(pictures), 3, tiles.SIDE, tiles.SIDE)
    mask = torch.zeros(len(pictures), tiles.SIDE, tiles.SIDE, dtype=torch.bool)
    for at, picture in enumerate(pictures):
        scale = tiles.SIDE / max(picture.size)
        width, height = (max(int(n * scale), tiles.SIDE // 3) for n in picture.size)
        whole = tiles.pixels([picture], tiles.SIDE)
        values[at, :, :height, :width] = torch.nn.functional.interpolate(whole, (height, width))
        mask[at, :height, :width] = True
    return [[tiles.IMAGE] * N_TOKENS] * len(pictures), {"pixel_values": values, "pixel_mask": mask}
