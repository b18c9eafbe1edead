"""Tiles at the sizes of published checkpoints: as many tokens as the processors write."""

from __future__ import annotations

from types import SimpleNamespace

import processors
import torch
from transformers import LlavaNextConfig, LlavaOnevisionConfig

from tpcal.plans.families.llava_next import tiled_shape, with_newlines
from tpcal.plans.families.llava_onevision import _shrunk

SIZES = torch.randint(20, 3000, (300, 2), generator=torch.Generator().manual_seed(0)).tolist()


def test_llava_next_at_336_pixels():
    model = SimpleNamespace(config=LlavaNextConfig())
    processor = processors.llava_next()
    processor.patch_size = 14
    processor.image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints
    for size in SIZES:
        tiles = with_newlines(*tiled_shape(model, 24, size))
        wanted = processor._get_number_of_features(*size, 336, 336) - 1  # the class token
        assert 24 * 24 + len(tiles.row) == wanted, size


def test_llava_onevision_at_384_pixels():
    model = SimpleNamespace(config=LlavaOnevisionConfig())
    processor = processors.llava_onevision()
    processor.num_image_tokens, processor.vision_aspect_ratio = 27 * 27, "anyres_max_9"
    processor.image_processor.image_grid_pinpoints = model.config.image_grid_pinpoints
    for size in SIZES:
        tiles = with_newlines(*_shrunk(model, 27, size))
        wanted = processor._get_number_of_features(*size, 384, 384)
        assert 27 * 27 + len(tiles.row) == wanted, size
