"""Idefics2 and Aria: each token is made from the whole image, so it has no place in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, run_lengths
from tpcal.plans.images.tiles import unplaced_view


class Resampled(Family):
    """Supports Idefics2 and Aria, which make each visual token from the whole image.

    Resampled tokens appear in the prompt and are pruned like others. Selectors that use the token
    grid get a single row, and reports name no patches.

    Source:
        Laurençon et al. 2024 (arXiv 2405.02246); Li et al. 2024 (arXiv 2410.05993).
    """

    name = "resampled"
    architectures = ("AriaForConditionalGeneration", "Idefics2ForConditionalGeneration")

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """Every run of tokens is a view whose tokens have no places in the image."""
        return tuple(
            tuple(unplaced_view(n, image) for image, n in enumerate(lengths))
            for lengths in run_lengths(prompt.visual)
        )

    def ffn(self, text: Any) -> int:
        """Width of the FFN that a token passes; for Aria, of the experts that it visits."""
        if not hasattr(text, "moe_topk"):
            return super().ffn(text)
        return int(text.intermediate_size * (text.moe_topk + text.moe_num_shared_experts))


FAMILY = Resampled()
