"""LLaVA-NeXT and LLaVA-NeXT-Video: an overview of each image, and its tiles without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families.base import rect_grid
from tpcal.plans.images.tower import Tower, tower_of, without_class
from tpcal.plans.images.views import IMAGE, VIDEO, InOrder, steps_of


class LlavaNext(InOrder):
    """Supports LLaVA-NeXT and LLaVA-NeXT-Video.

    The tiles of an image lie side by side in one view. Its outermost cells may reach beyond the
    image by less than a cell, because padding is removed in whole cells.

    Source:
        Liu et al. 2024, "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge" (blog).
    """

    name = "llava_next"
    architectures = ("LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration")

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """An image is its overview and its tiles; a video has one view per frame."""
        side = tower_side(model)
        sizes = inputs.get("image_sizes")
        pictures = [] if sizes is None else torch.as_tensor(sizes).tolist()
        tiles = [tiled_shape(model, side, size) for size in pictures]
        images: list[tuple[ViewGrid, ...]] = [
            (rect_grid(side, side), with_newlines(*shape)) for shape in tiles
        ]
        pooled = side // getattr(model.config, "spatial_pool_stride", 1)
        videos = [steps_of((n, pooled, pooled)) for n in n_frames(inputs, pooled * pooled)]
        return {kind: views for kind, views in ((IMAGE, images), (VIDEO, videos)) if views}

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """Not supported if frames are pooled by learned weights or by the largest value."""
        if getattr(model.config, "spatial_pool_mode", "average") != "average":
            return None
        base: Any = model.base_model
        return tower_of(base.vision_tower, model.config.vision_feature_layer)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """Patches are visual tokens, packed and pooled like the model's features."""
        base: Any = model.base_model
        values = without_class(model, patches, inputs)
        if "pixel_values_videos" in inputs:
            return base.vision_resampler(values).flatten(0, 1)
        sizes = inputs["image_sizes"]
        tiles = values.split([n_tiles(model, size) for size in sizes])
        return torch.cat(base.pack_image_features(tiles, sizes, "default", uncovering(values))[0])


FAMILY = LlavaNext()


def tower_side(model: PreTrainedModel) -> int:
    """Number of tokens along one side of a picture that the tower receives."""
    vision: Any = model.config.vision_config
    return vision.image_size // vision.patch_size


def tiled_shape(model: PreTrainedModel, side: int, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of tokens of an image's tiles, without the padding.

    Args:
        model: The model.
        side: Number of tokens along one side of a tile.
        size: Height and width of the image in pixels.
    """
    height, width = size
    tile = model.config.vision_config.image_size
    best = select_best_resolution(tuple(size), model.config.image_grid_pinpoints)
    n_rows, n_cols = (side * (length // tile) for length in best)
    if width / height > n_cols / n_rows:
        return n_rows - _padding(n_rows, height * (n_cols / width)), n_cols
    return n_rows, n_cols - _padding(n_cols, width * (n_rows / height))


def n_tiles(model: PreTrainedModel, size: Tensor) -> int:
    """Number of pictures of an image that the tower receives, including the overview."""
    config: Any = model.config
    tile = config.vision_config.image_size
    return image_size_to_num_patches(size, config.image_grid_pinpoints, tile)


def uncovering(values: Tensor) -> Tensor:
    """[C] value of a token that covers no patches, where other tokens have ``values`` [..., C]."""
    value = values.new_zeros(values.shape[-1])
    value[0] = -torch.inf
    return value


def with_newlines(n_rows: int, n_cols: int) -> ViewGrid:
    """A view in reading order with one more token at the end of every row."""
    place = torch.arange(n_rows * (n_cols + 1))
    return ViewGrid(
        place // (n_cols + 1), place % (n_cols + 1), n_rows, n_cols + 1, n_extra_cols=1
    )


def n_frames(inputs: Mapping[str, Any], n_per_frame: int, n_extra: int = 0) -> list[int]:
    """Frames of each video of the batch.

    Args:
        inputs: Arguments of the base model.
        n_per_frame: Number of tokens of a frame.
        n_extra: Number of further tokens of a video.
    """
    pixels = inputs.get("pixel_values_videos")
    if pixels is not None:
        return [pixels.shape[1]] * pixels.shape[0]
    encoded = (inputs.get("mm_encoder_outputs") or {}).get("video")
    features = () if encoded is None else encoded.pooler_output
    return [(len(video) - n_extra) // n_per_frame for video in features]


def _padding(n: int, content: float) -> int:
    """Number of cells to remove on each side if so many of n cells hold the image."""
    return (n - int(round(content, 7))) // 2 * 2
