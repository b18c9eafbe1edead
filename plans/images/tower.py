"""The part of a vision tower that selectors read, and its values by visual token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_window_index


@dataclass(frozen=True)
class Tower:
    """The part of a vision tower whose attention is read."""

    attention: nn.Module
    """Attention module of the layer whose output becomes the visual tokens."""
    has_class: bool = False
    """Whether the first token of every call is a class token; its attention is then the score."""


def tower_of(module: nn.Module, feature_layer: int | Sequence[int]) -> Tower | None:
    """The tower with the layer that the projector reads; the last one if it reads several layers.

    Args:
        module: A tower with a list ``layers`` or ``layer``, as in CLIP, SigLIP and InternViT.
        feature_layer: Index in ``hidden_states`` as in the configs of transformers: 0 is the
            embedding, -1 the last layer.
    """
    parts = module.named_modules()
    lists = (part for name, part in parts if name.rpartition(".")[2] in ("layers", "layer"))
    layers: Any = next(lists, ())
    wanted = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    at = max((layer - 1 if layer >= 0 else layer + len(layers) for layer in wanted), default=-1)
    if not 0 <= at < len(layers):
        return None
    names = [name.rpartition(".")[2] for name, _ in module.named_parameters()]
    attention = getattr(layers[at], "self_attn", None) or layers[at].attention
    return Tower(attention, "class_embedding" in names or "cls_token" in names)


def without_class(
    model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
) -> Tensor:
    """[images, P, C] values of the tokens that LLaVA's feature selection keeps.

    Args:
        model: A model like LLaVA; the selection "default" drops the tower's first token.
        patches: [images, P, C] values of each attention call.
        inputs: Arguments of the encoder.
    """
    mine = getattr(model.config, "vision_feature_select_strategy", "default")  # not VipLLaVA's
    whole = (inputs.get("vision_feature_select_strategy") or mine) != "default"
    return torch.cat([images if whole else images[:, 1:] for images in patches])


def merged_blocks(
    model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
) -> Tensor:
    """[n, C] means of the square blocks of patches that a tower like Qwen's merges.

    Args:
        model: A model whose tower receives the patches of a block one after the other; a tower
            with windows reorders the blocks.
        patches: [1, P, C] values of each attention call: an image, a frame or a window.
        inputs: Arguments of the encoder.
    """
    config: Any = model.config.vision_config
    merge = config.spatial_merge_size
    values = torch.cat(list(patches), dim=1)[0].unflatten(0, (-1, merge**2)).mean(dim=1)
    if not hasattr(config, "window_size"):
        return values
    grid = inputs["image_grid_thw" if "image_grid_thw" in inputs else "video_grid_thw"]
    order, _ = get_vision_window_index(grid, merge, config.window_size, config.patch_size)
    return values[order.argsort().to(values.device)]


def square_blocks(values: Tensor, n_tokens: int) -> Tensor:
    """[n, n_tokens, C] means of the square blocks of patches that become the tokens of an image.

    Args:
        values: [n, P, C] values of the patches of square images in reading order.
        n_tokens: Number of tokens of an image, a square number.
    """
    side = math.isqrt(n_tokens)
    merge = math.isqrt(values.shape[1]) // side
    blocks = values.unflatten(1, (side, merge, side, merge))
    return blocks.mean(dim=(2, 4)).flatten(1, 2)
