"""Gemma 3 and ShieldGemma 2: one square per image, with attention in both directions inside it."""

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
    """Supports Gemma 3, and ShieldGemma 2, which is a Gemma 3 with two logits.

    The crops of pan-and-scan appear in the prompt as separate images, and the prompt does not say
    which part of the image they show; each is therefore a view of its own. Image tokens attend to
    their whole image, but not to text after it. Attention that is read at a sliding layer covers
    its window only: tokens before the window have the score 0.

    Source:
        Gemma team 2025 (arXiv 2503.19786); Zeng et al. 2025 (arXiv 2504.01081).
    """

    name = "gemma3"
    architectures = ("Gemma3ForConditionalGeneration", "ShieldGemma2ForImageClassification")

    def base(self, model: PreTrainedModel) -> nn.Module:
        """The module that receives token ids and images and calls the decoder."""
        return _conditional(model).model

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the norm; for ShieldGemma 2, of its Gemma 3."""
        return _conditional(model).lm_head(states)

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """Every image has a square of tokens of the same size."""
        n_image = model.config.mm_tokens_per_image
        return tuple(_squares(n, n_image) for n in prompt.n_visual)

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower SigLIP, with its last layer."""
        return tower_of(_conditional(model).model.vision_tower, -1)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """A visual token is the mean of a square block of patches."""
        n_image = model.config.mm_tokens_per_image
        return square_blocks(torch.cat(list(patches)), n_image).flatten(0, 1)


FAMILY = Gemma3()


def _conditional(model: Any) -> Any:
    """The part of the model that has a language-model head."""
    return model if hasattr(model, "lm_head") else model.model


def _squares(n_visual: int, n_image: int) -> tuple[ViewGrid, ...]:
    n = whole_images(n_visual, n_image, "whole images")
    return tuple(square_grid(math.isqrt(n_image), image=image) for image in range(n))
