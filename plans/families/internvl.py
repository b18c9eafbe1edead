"""InternVL, Qianfan-OCR and GOT-OCR2: tiles, then an overview, in one run of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens
from tpcal.plans.families.base import run_lengths, whole_images
from tpcal.plans.images.mosaic import Mosaic
from tpcal.plans.images.tower import Tower, square_blocks, tower_of, without_class


class InternVL(Mosaic):
    """Supports InternVL, Qianfan-OCR and GOT-OCR2, whose images are tiles with an overview.

    Source:
        Chen et al. 2024 (arXiv 2404.16821); Wei et al. 2024 (arXiv 2409.01704).
    """

    name = "internvl"
    architectures = (
        "GotOcr2ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "QianfanOCRForConditionalGeneration",
    )

    def tile_side(self, model: PreTrainedModel) -> int:
        """Number of tokens along one side of a tile."""
        config, vision = model.config, model.config.vision_config
        if config.model_type == "got_ocr2":
            return vision.image_size // vision.patch_size // 4  # two convolutions of stride two
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)

    def tile_counts(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> list[list[int]]:
        """Every unbroken run of visual tokens is an image."""
        n_tile = self.tile_side(model) ** 2
        return [
            [whole_images(n, n_tile, "whole tiles") for n in lengths]
            for lengths in run_lengths(prompt.visual)
        ]

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """InternViT, with a class token; the towers of the other models are not supported."""
        if model.config.model_type != "internvl":
            return None
        base: Any = model.base_model
        return tower_of(base.vision_tower, model.config.vision_feature_layer)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """A visual token is made from a square block of patches."""
        values = without_class(model, patches, inputs)
        return square_blocks(values, self.tile_side(model) ** 2).flatten(0, 1)


FAMILY = InternVL()
