"""DeepSeek-VL and Janus: every image is one square of tokens, and two images may be adjacent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, square_grid, whole_images


class DeepseekVL(Family):
    """Supports DeepSeek-VL and Janus, whose images all have one size.

    Janus generates images from other embeddings and without image tokens; no token is pruned
    there.

    Source:
        Lu et al. 2024 (arXiv 2403.05525); Wu et al. 2024 (arXiv 2410.13848).
    """

    name = "deepseek_vl"
    architectures = (
        "DeepseekVLForConditionalGeneration",
        "DeepseekVLHybridForConditionalGeneration",
        "JanusForConditionalGeneration",
    )

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """The patches of the vision tower are the visual tokens."""
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        return tuple(
            tuple(square_grid(side, image=i) for i in range(whole_images(n, side**2, "images")))
            for n in prompt.n_visual
        )


FAMILY = DeepseekVL()
