"""What the executor asks about an architecture. A family file holds only what differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcal.plans.stack import Grid


class Family(ABC):
    """Finds the parts of one kind of model; the defaults follow transformers' own conventions."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    """Class names of the models it serves."""

    def base(self, model: PreTrainedModel) -> nn.Module:
        """The module that receives token ids and images and calls the decoder."""
        return model.base_model

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """The stack of decoder layers, with its final norm."""
        decoder = model.get_decoder()
        while not hasattr(decoder, "layers"):
            decoder = decoder.get_decoder()
        return decoder

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers in order."""
        return self.decoder(model).layers  # type: ignore[return-value]

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm between the last layer and the head."""
        return self.decoder(model).norm  # type: ignore[return-value]

    def attention(self, layer: nn.Module) -> nn.Module:
        """The softmax attention module of a layer."""
        return layer.self_attn  # type: ignore[return-value]

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] from normed states [..., D]."""
        return model.get_output_embeddings()(states)

    def visual_mask(
        self, model: PreTrainedModel, ids: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """[B, S] True where a token stands for a part of an image.

        Args:
            model: The model.
            ids: [B, S] token ids.
            embeds: [B, S, D] where there are no ids; a token is visual where its embedding is the
                placeholder's.
        """
        token = model.config.image_token_id
        if ids is not None:
            return ids == token
        assert embeds is not None
        placeholder = torch.tensor(token, device=embeds.device)
        return (embeds == model.get_input_embeddings()(placeholder)).all(dim=-1)

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a padded prompt."""
        mask = inputs.get("attention_mask")
        if mask is None or "position_ids" in inputs:
            return dict(inputs)
        return {**inputs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    @abstractmethod
    def grids(
        self, model: PreTrainedModel, n_visual: Sequence[int], inputs: Mapping[str, Any]
    ) -> tuple[tuple[Grid, ...], ...]:
        """The images of each row, in order.

        Args:
            model: The model.
            n_visual: Visual tokens of each row.
            inputs: What the base model was called with.

        Raises:
            UsageError: The tokens of a row are not those of whole images.
        """

    def problems(self, model: PreTrainedModel) -> list[str]:
        """Why this very model cannot be served; empty where it can."""
        return []


def square_grid(side: int, n_extra: int = 0) -> Grid:
    """A side x side grid in reading order; ``n_extra`` class tokens get a last column."""
    place = torch.arange(side * side)
    extra = torch.arange(n_extra)
    return Grid(
        torch.cat([extra, place // side]),
        torch.cat([torch.full_like(extra, side), place % side]),
        side,
        side + (n_extra > 0),
    )
