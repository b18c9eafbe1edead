"""Gemma 3 and ShieldGemma 2: one square per image, whose tokens see each other both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, square_grid, whole_images
from tpcal.plans.images.tower import Tower, square_blocks, tower_of


class Gemma3(Family):
    """Gemma team 2025 (arXiv 2503.19786). ShieldGemma 2 (arXiv 2504.01081) is one with two logits.

    The crops of pan-and-scan stand in the prompt as images of their own, and nothing tells where
    they were cut; each is a view of itself. Image tokens see their whole image, not text behind
    it. Attention read at a sliding layer is that of its window: tokens before it score nothing.
    """

    name = "gemma3"
    architectures = ("Gemma3ForConditionalGeneration", "ShieldGemma2ForImageClassification")

    def base(self, model: PreTrainedModel) -> nn.Module:
        """The module that receives token ids and images and calls the decoder."""
        return _conditional(model).model

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] from normed states [..., D]; of ShieldGemma 2, those of the model inside."""
        return _conditional(model).lm_head(states)

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """Every image has the same square of tokens."""
        n_image = model.config.mm_tokens_per_image
        return tuple(_squares(n, n_image) for n in prompt.n_visual)

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """SigLIP's last layer."""
        return tower_of(_conditional(model).model.vision_tower, -1)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """A visual token is the mean of a square block of patches."""
        n_image = model.config.mm_tokens_per_image
        return square_blocks(torch.cat(list(patches)), n_image).flatten(0, 1)


FAMILY = Gemma3()


def _conditional(model: Any) -> Any:
    """The model with a head over words."""
    return model if hasattr(model, "lm_head") else model.model


def _squares(n_visual: int, n_image: int) -> tuple[ViewGrid, ...]:
    n = whole_images(n_visual, n_image, "whole images")
    return tuple(square_grid(math.isqrt(n_image), image=image) for image in range(n))
