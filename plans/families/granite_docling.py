"""Granite-Docling: Idefics3's tiles before a decoder with DeepStack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families import granite4_vision, idefics3, qwen3_vl
from tpcal.plans.families.base import Family

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass


class GraniteDocling(Family):
    """Described only in the model card of IBM."""

    name = "granite_docling"
    architectures = ("GraniteDoclingForConditionalGeneration",)
    since: ClassVar[Mapping[str, str]] = {"GraniteDoclingForConditionalGeneration": "5.23"}

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """The views are those of Idefics3; an image of one tile has no overview."""
        return idefics3.FAMILY.grids(model, prompt, inputs)

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the final norm, as in Granite 4 Vision."""
        return super().logits(model, states) / granite4_vision.scaling(model)

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Gives every surviving token its own DeepStack features."""
        qwen3_vl.FAMILY.attach(model, current, undo)

    def between(
        self,
        model: PreTrainedModel,
        layer: int,
        hidden: Tensor,
        inputs: Mapping[str, Any],
        run: ForwardPass,
    ) -> Tensor:
        """The states with the DeepStack features that are added after this layer."""
        return qwen3_vl.FAMILY.between(model, layer, hidden, inputs, run)


FAMILY = GraniteDocling()
