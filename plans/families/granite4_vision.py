"""Granite 4 Vision: tiles of LLaVA-NeXT, downsampled, and added before several decoder layers."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.families.base import rect_grid
from tpcal.plans.families.llava_next import tiled_shape, tower_side, with_newlines
from tpcal.plans.images.views import IMAGE, InOrder


class Granite4Vision(InOrder):
    """Described only in the model card of IBM. The tiles are those of LLaVA-NeXT.

    The decoder adds features to all visual tokens inside its loop over the layers, which cannot be
    hooked. Cuts are therefore possible only after the last of these layers.
    """

    name = "granite4_vision"
    architectures = ("Granite4VisionForConditionalGeneration",)

    def cut_layers(self, model: PreTrainedModel) -> range:
        """Layers from the last one before which features are added; cuts come after them."""
        config: Any = model.config
        added = [layer for _, layer in config.deepstack_layer_map] + config.spatial_target_layers
        return range(max(added), len(self.layers(model)))

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the final norm, which the model divides."""
        return super().logits(model, states) / scaling(model)

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """An image is its overview and its tiles."""
        if "image_sizes" not in inputs:
            return {}
        side = int(tower_side(model) * Fraction(model.config.downsample_rate))
        sizes = torch.as_tensor(inputs["image_sizes"]).tolist()
        shapes = [tiled_shape(model, side, size) for size in sizes]
        return {IMAGE: [(rect_grid(side, side), with_newlines(*shape)) for shape in shapes]}


FAMILY = Granite4Vision()


def scaling(model: PreTrainedModel) -> float:
    """What Granite's logits are divided by."""
    return model.config.get_text_config(decoder=True).logits_scaling
