"""Mistral 3, LightOnOCR and other models with Pixtral's tower: one view per image, of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.images.views import IMAGE, InOrder, steps_of


class Mistral3(InOrder):
    """Supports Mistral 3, LightOnOCR and other models with the vision tower of Pixtral.

    The tokens that the processor adds after every row of an image count as text and are never
    pruned.

    Source:
        Agrawal et al. 2024 (arXiv 2410.07073) for the tower.
    """

    name = "mistral3"
    architectures = ("Mistral3ForConditionalGeneration", "LightOnOcrForConditionalGeneration")

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """Views in whole cells; a remainder at the right or lower edge forms no cell."""
        sizes = inputs.get("image_sizes")
        if sizes is None:
            return {}
        config: Any = model.config
        cell = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
        pictures = torch.as_tensor(sizes).tolist()
        return {
            IMAGE: [steps_of((1, height // cell, width // cell)) for height, width in pictures]
        }


FAMILY = Mistral3()
