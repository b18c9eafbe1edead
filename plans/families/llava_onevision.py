"""LLaVA-OneVision: tiles are downsized to a limit; several images and videos have no tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families.base import rect_grid
from tpcal.plans.families.llava_next import (
    n_frames,
    n_tiles,
    tiled_shape,
    tower_side,
    uncovering,
    with_newlines,
)
from tpcal.plans.images.tower import Tower, tower_of, without_class
from tpcal.plans.images.views import IMAGE, VIDEO, InOrder, steps_of

_SLACK = 1.1
"""Tiles are downsized if their sides are this many times too long."""


class LlavaOnevision(InOrder):
    """Supports LLaVA-OneVision, with tiles packed as in transformers.

    Source:
        Li et al. 2024 (arXiv 2408.03326).
    """

    name = "llava_onevision"
    architectures = ("LlavaOnevisionForConditionalGeneration",)

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """The overview and the tiles of a single image; otherwise one view per image and frame."""
        side = tower_side(model)
        sizes = inputs.get("image_sizes")
        pictures = [] if sizes is None else torch.as_tensor(sizes).tolist()
        pairs = zip(pictures, _are_tiled(inputs, len(pictures), side * side), strict=True)
        images: list[tuple[ViewGrid, ...]] = [
            (rect_grid(side, side), with_newlines(*_shrunk(model, side, size)))
            if tiled
            else (_with_end(rect_grid(side, side)),)
            for size, tiled in pairs
        ]
        pooled = math.ceil(side / 2)
        lengths = n_frames(inputs, pooled * pooled, n_extra=1)
        videos = [_ended(steps_of((n, pooled, pooled))) for n in lengths]
        return {kind: views for kind, views in ((IMAGE, images), (VIDEO, videos)) if views}

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower SigLIP, which has no class token."""
        base: Any = model.base_model
        return tower_of(base.vision_tower, model.config.vision_feature_layer)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """Patches are visual tokens, packed, downsized and pooled like the model's features."""
        base: Any = model.base_model
        values = without_class(model, patches, inputs)
        end = uncovering(values)
        if "pixel_values_videos" in inputs:
            videos = base.apply_pooling(values).unflatten(
                0, inputs["pixel_values_videos"].shape[:2]
            )
            ends = end.expand(len(videos), 1, -1)
            return torch.cat([videos.flatten(1, 2), ends], dim=1).flatten(0, 1)
        sizes = inputs["image_sizes"]
        pairs = zip(sizes, _are_tiled(inputs, len(sizes), tower_side(model) ** 2), strict=True)
        tiles = values.split([n_tiles(model, size) if tiled else 1 for size, tiled in pairs])
        limit = model.config.vision_aspect_ratio
        return torch.cat(base.pack_image_features(tiles, sizes, end, limit)[0])


FAMILY = LlavaOnevision()


def _are_tiled(inputs: Mapping[str, Any], n_images: int, n_tower: int) -> list[bool]:
    """Whether each image is tiled; images of a prompt with several images are not."""
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
    if encoded is not None:
        return [len(features) != n_tower + 1 for features in encoded.pooler_output]
    counts = inputs.get("batch_num_images")
    if counts is None:
        return [True] * n_images
    return [n == 1 for n in torch.as_tensor(counts).tolist() for _ in range(n)]


def _shrunk(model: PreTrainedModel, side: int, size: list[int]) -> tuple[int, int]:
    """Rows and columns of tokens of the tiles, downsized to the limit in the config."""
    n_rows, n_cols = tiled_shape(model, side, size)
    most = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(n_rows * n_cols / (most * side**2))
    return (int(n_rows // ratio), int(n_cols // ratio)) if ratio > _SLACK else (n_rows, n_cols)


def _with_end(view: ViewGrid) -> ViewGrid:
    """The view with one more token, which covers no pixels, in an additional column."""
    row = torch.cat([view.row, view.row[-1:]])
    col = torch.cat([view.col, torch.tensor([view.n_cols])])
    return replace(view, row=row, col=col, n_cols=view.n_cols + 1, n_extra_cols=1)


def _ended(frames: tuple[ViewGrid, ...]) -> tuple[ViewGrid, ...]:
    return (*frames[:-1], _with_end(frames[-1]))
