"""LLaVA-1.5 and VipLLaVA: one square grid per image. Pixtral uses their class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families import mistral3
from tpcal.plans.families.base import Family, square_grid
from tpcal.plans.images.tower import Tower, tower_of, without_class


class Llava(Family):
    """Supports LLaVA-1.5, VipLLaVA, and Pixtral, which transformers loads as a LLaVA.

    Source:
        Liu et al. 2023 (arXiv 2310.03744); Cai et al. 2023 (arXiv 2312.00784).
    """

    name = "llava"
    architectures = ("LlavaForConditionalGeneration", "VipLlavaForConditionalGeneration")

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """Every image has the grid of the vision tower, with or without a class token.

        The tower of Pixtral accepts images of any size.
        """
        vision = model.config.vision_config
        if _is_pixtral(model):
            return mistral3.FAMILY.grids(model, prompt, inputs)
        side = vision.image_size // vision.patch_size
        return tuple(_images(side, n) for n in prompt.n_visual)

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """CLIP, with a class token, or SigLIP; the tower of Pixtral is not supported."""
        if _is_pixtral(model):
            return None
        return tower_of(model.base_model.vision_tower, compat.feature_layer(model.config))

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """Patches are visual tokens; the strategy "default" leaves out the tower's first token."""
        return without_class(model, patches, inputs).flatten(0, 1)


FAMILY = Llava()


def _is_pixtral(model: PreTrainedModel) -> bool:
    return model.config.vision_config.model_type == "pixtral"


def _n_tokens(side: int, n_visual: int) -> int:
    for n in (side * side, side * side + 1):
        if n_visual % n == 0:
            return n
    raise UsageError(
        f"The visual tokens of a prompt must be whole images of {side * side} tokens (or one "
        f"more, with a class token); got {n_visual}."
    )


def _images(side: int, n_visual: int) -> tuple[ViewGrid, ...]:
    n = _n_tokens(side, n_visual)
    return tuple(square_grid(side, n - side * side, image) for image in range(n_visual // n))
