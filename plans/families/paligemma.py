"""PaliGemma and PaliGemma 2: bidirectional attention in the prompt, positions from 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor import compat
from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, softcapped, square_grid, whole_images
from tpcal.plans.images.tower import Tower, tower_of


class PaliGemma(Family):
    """Beyer et al. 2024 (arXiv 2407.07726), Steiner et al. 2024 (arXiv 2412.03555)."""

    name = "paligemma"
    architectures = ("PaliGemmaForConditionalGeneration",)
    bidirectional: ClassVar[bool] = True

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the final norm; Gemma 2 limits their size."""
        logits = super().logits(model, states)
        return softcapped(model, logits) if compat.LIMITS_LOGITS else logits

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a padded prompt, from 1."""
        made = super().numbered(inputs)
        if "position_ids" in made and "position_ids" not in inputs:
            made["position_ids"] = made["position_ids"] + 1
        return made

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """Every image has the grid of the vision tower."""
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return tuple(_squares(n, side) for n in prompt.n_visual)

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower SigLIP, with its last layer."""
        base: Any = model.base_model
        return tower_of(base.vision_tower, -1)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """Patches are visual tokens."""
        return torch.cat(list(patches)).flatten(0, 1)


FAMILY = PaliGemma()


def _squares(n_visual: int, side: int) -> tuple[ViewGrid, ...]:
    n = whole_images(n_visual, side * side, "whole images")
    return tuple(square_grid(side, image=image) for image in range(n))
