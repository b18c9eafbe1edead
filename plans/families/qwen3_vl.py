"""Qwen3-VL: DeepStack adds vision features after the first layers; time stamps separate frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.survivors import Survivors
from tpcal.plans.images.tower import Tower, merged_blocks
from tpcal.plans.images.views import AnySize

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass


class Qwen3VL(AnySize):
    """Supports Qwen3-VL, whose first layers add features of the vision tower (DeepStack).

    Source:
        Bai et al. 2025 (arXiv 2511.21631); Meng et al. 2024 (arXiv 2406.04334) for DeepStack.
    """

    name = "qwen3_vl"
    architectures = (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3OmniMoeThinkerForConditionalGeneration",
    )

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Gives every surviving token its own DeepStack features."""
        decoder: Any = self.decoder(model)
        add_to_all = decoder._deepstack_process

        def add_to_survivors(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
            run = current()
            if run is None or run.survivors.places is None:
                return add_to_all(hidden, visual, features)
            return deepstack(hidden, visual, features, run.survivors)

        decoder._deepstack_process = add_to_survivors
        undo.callback(delattr, decoder, "_deepstack_process")

    def between(
        self,
        model: PreTrainedModel,
        layer: int,
        hidden: Tensor,
        inputs: Mapping[str, Any],
        run: ForwardPass,
    ) -> Tensor:
        """The states with the DeepStack features that are added after this layer."""
        features = inputs.get("deepstack_visual_embeds")
        if features is None or layer >= len(features):
            return hidden
        return deepstack(hidden, inputs["visual_pos_masks"], features[layer], run.survivors)

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower with its last layer; the layers that DeepStack uses are not read."""
        base: Any = model.base_model
        return Tower(base.visual.blocks[-1].attn)

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """A visual token is made from a block of neighbouring patches."""
        return merged_blocks(model, patches, inputs)


FAMILY = Qwen3VL()


def deepstack(hidden: Tensor, visual: Tensor, features: Tensor, survivors: Survivors) -> Tensor:
    """[B, m, D] the states with each visual token's features added.

    Args:
        hidden: [B, m, D] states of the survivors.
        visual: [B, S] bool, by place.
        features: [n, D] features of all visual tokens, row after row of the batch.
        survivors: The tokens that the columns of ``hidden`` hold.
    """
    visual, survivors = visual.to(hidden.device), survivors.to(hidden.device)
    # number[row, place]: which of the visual tokens of the batch stands there
    number = visual.flatten().cumsum(0).view_as(visual) - 1
    if survivors.places is not None:
        number = number.gather(1, survivors.places)
    at = survivors.take(visual)
    hidden = hidden.clone()
    hidden[at] = hidden[at] + features[number[at].to(features.device)].to(hidden)
    return hidden
