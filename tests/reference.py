"""What tests compare with: positions as `generate` numbers them, and a class token's attention."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tpcal.plans.laws.rounding import allowed


def positions_of(real: Tensor) -> Tensor:
    """[B, S] positions as `generate` numbers them."""
    return (real.long().cumsum(-1) - 1).clamp(min=0)


def close(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Largest difference of the model's logits for these inputs that counts as none."""
    real = inputs["attention_mask"].bool()
    return allowed(model, lambda: model(**inputs, position_ids=positions_of(real)).logits[real])


def class_attention(model: Any, pixels: Tensor) -> Tensor:
    """[images, N, 1 + d] attention of CLIP's class token and mean keys, last layer but one."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    out = tower(pixels, output_attentions=True, output_hidden_states=True)
    layer = tower.encoder.layers[-2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(out.hidden_states[-3]))
    keys = keys.unflatten(-1, (layer.self_attn.num_heads, -1)).mean(2)
    return torch.cat([out.attentions[-2].mean(1)[:, 0, :, None], keys], -1)[:, 1:]
