"""InternVL, Qianfan-OCR and GOT-OCR2: tiles, then an overview, in one run of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.families.base import run_lengths, whole_images
from tpcal.plans.mosaic import Mosaic
from tpcal.plans.stack import Prompt


class InternVL(Mosaic):
    """Chen et al. 2024 (arXiv 2404.16821) and Wei et al. 2024 (arXiv 2409.01704)."""

    name = "internvl"
    architectures = (
        "GotOcr2ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "QianfanOCRForConditionalGeneration",
    )

    def tile_side(self, model: PreTrainedModel) -> int:
        """Tokens along a tile."""
        config, vision = model.config, model.config.vision_config
        if config.model_type == "got_ocr2":
            return vision.image_size // vision.patch_size // 4  # two convolutions of stride two
        return int(vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio)

    def tile_counts(
        self, model: PreTrainedModel, prompt: Prompt, inputs: Mapping[str, Any]
    ) -> list[list[int]]:
        """Every run of tokens is an image."""
        n_tile = self.tile_side(model) ** 2
        return [
            [whole_images(n, n_tile, "whole tiles") for n in lengths]
            for lengths in run_lengths(prompt.visual)
        ]


FAMILY = InternVL()
