"""LLaVA-1.5: one square grid per image, placeholders of one id, a plain causal decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.families.base import Family, square_grid
from tpcal.plans.stack import Grid, Prompt


class Llava(Family):
    """`LlavaForConditionalGeneration` with one image size (Liu et al. 2023, arXiv 2310.03744)."""

    name = "llava"
    architectures = ("LlavaForConditionalGeneration",)

    def grids(
        self, model: PreTrainedModel, prompt: Prompt, inputs: Mapping[str, Any]
    ) -> tuple[tuple[Grid, ...], ...]:
        """Every image of a row has the grid of the vision tower, with a class token or without."""
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return tuple(_images(side, n) for n in prompt.n_visual)

    def problems(self, model: PreTrainedModel) -> list[str]:
        """Pixtral towers have images of any size, which this family does not know."""
        kind = model.config.vision_config.model_type
        if kind == "pixtral":
            return [f"The vision tower must have one image size; got {kind!r}."]
        return []


FAMILY = Llava()


def _n_tokens(side: int, n_visual: int) -> int:
    for n in (side * side, side * side + 1):
        if n_visual % n == 0:
            return n
    raise UsageError(
        f"The visual tokens of a prompt must be whole images of {side * side} tokens (or one "
        f"more, with a class token); got {n_visual}."
    )


def _images(side: int, n_visual: int) -> tuple[Grid, ...]:
    n = _n_tokens(side, n_visual)
    return tuple(square_grid(side, n - side * side, image) for image in range(n_visual // n))
