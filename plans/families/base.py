"""The interface between the executor and a model architecture, with defaults.

The defaults follow transformers' own conventions: `get_decoder`, `image_token_id`, `.layers`,
`.norm`, `self_attn`. They support any model that follows these (families/generic.py), and the file
of a family overrides only what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tpcal.plans.cost import DecoderShape
from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.images.tower import Tower

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass


_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


class Family:
    """Locates the parts of the models of one architecture."""

    name: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]] = ()
    """Class names of the models it supports."""
    since: ClassVar[Mapping[str, str]] = {}
    """The first release of transformers, of those that were tried, that has a class. A class that
    is not here is in the oldest of them."""
    bidirectional: ClassVar[bool] = False
    """Whether visual tokens may attend to text after them."""

    def base(self, model: PreTrainedModel) -> nn.Module:
        """The module that receives token ids and images and calls the decoder."""
        return model.base_model

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """The stack of decoder layers, with its final norm."""
        decoder: Any = model.get_decoder()
        while not hasattr(decoder, "layers"):
            inner = compat.decoder_of(decoder)
            if inner is decoder:  # get_decoder() of a model without a decoder returns the model
                raise AttributeError(f"{type(decoder).__name__} has no decoder layers.")
            decoder = inner
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
        """[..., V] logits of states [..., D] after the final norm."""
        return model.get_output_embeddings()(states)

    def key_source(self, model: PreTrainedModel, layer: int) -> int:
        """The layer whose keys and values this layer reads; usually its own."""
        return layer

    def cut_layers(self, model: PreTrainedModel) -> range:
        """Layers that a cut may be placed before."""
        return range(len(self.layers(model)))

    def visual_ids(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Token ids that stand for parts of images and videos."""
        found = (getattr(model.config, name, None) for name in _TOKENS)
        return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))

    def visual_mask(
        self, model: PreTrainedModel, ids: Tensor | None, embeds: Tensor | None
    ) -> Tensor:
        """[B, S] bool, True at placeholders for parts of an image.

        Args:
            model: The model.
            ids: [B, S] token ids, or None.
            embeds: [B, S, D] embeddings, used if ids are None; a token is visual if its embedding
                equals that of a placeholder.
        """
        tokens = self.visual_ids(model)
        if ids is not None:
            found = [ids == token for token in tokens]
        else:
            assert embeds is not None
            table = model.get_input_embeddings()
            held = torch.tensor(tokens, device=embeds.device)
            found = [(embeds == placeholder).all(dim=-1) for placeholder in table(held)]
        return reduce(or_, found)

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a padded prompt."""
        mask = inputs.get("attention_mask")
        if mask is None or "position_ids" in inputs:
            return dict(inputs)
        return {**inputs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """The views of each row's images, in the order of its visual tokens.

        The default treats every unbroken run of visual tokens as one image: a square if the count
        is a square number, otherwise a single row.

        Args:
            model: The model.
            prompt: The prompt's tokens, without grids.
            inputs: Arguments of the base model without those that are None. If images were encoded
                before, the arguments of the encoder are included (plans/images/encoded.py).

        Raises:
            UsageError: The visual tokens of a row do not make up whole images.
        """
        return tuple(
            tuple(run_grid(n, image) for image, n in enumerate(lengths))
            for lengths in run_lengths(prompt.visual)
        )

    def attach(
        self, model: PreTrainedModel, current: Callable[[], ForwardPass | None], undo: ExitStack
    ) -> None:
        """Makes further changes that the model needs while a plan is applied; none by default.

        Args:
            model: The model.
            current: Function that returns the running pass; None between passes.
            undo: Stack for callbacks that revert the changes; closed when the plan is removed.
        """

    def between(
        self,
        model: PreTrainedModel,
        layer: int,
        hidden: Tensor,
        inputs: Mapping[str, Any],
        run: ForwardPass,
    ) -> Tensor:
        """[B, m, D] input of the next layer, as the decoder computes it from this layer's output.

        Args:
            model: The model.
            layer: The layer that ran.
            hidden: [B, m, D] output of the layer.
            inputs: Arguments of the decoder.
            run: The pass, with the tokens that remain.
        """
        return hidden

    def tower(self, model: PreTrainedModel) -> Tower | None:
        """The vision tower for selectors that need its attention; None if it is not supported.

        It can be supported if every visual token is made from a fixed group of patches.
        """
        return None

    def by_visual_token(
        self, model: PreTrainedModel, patches: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> Tensor:
        """[n, C] values of the visual tokens, in order, from values of the tower's tokens.

        The first value is a score and the others are a key. A token made from several patches has
        the means of their values; a token without patches has the score -inf and the key 0.

        Args:
            model: The model.
            patches: [images, P, C] values of each attention call of the tower.
            inputs: Arguments of the encoder.
        """
        raise NotImplementedError

    def problems(self, model: PreTrainedModel) -> list[str]:
        """Reasons why this particular model is not supported; empty if it is."""
        return []

    def shape(self, model: PreTrainedModel) -> DecoderShape:
        """Widths of the decoder."""
        text = model.config.get_text_config(decoder=True)
        n_heads = text.num_attention_heads
        shape = DecoderShape(
            n_layers=len(self.layers(model)),
            hidden=text.hidden_size,
            ffn=self.ffn(text),
            n_heads=n_heads,
            n_kv_heads=_of_layer_0(text, "num_key_value_heads") or n_heads,
            head_dim=_of_layer_0(text, "head_dim") or text.hidden_size // n_heads,
            vocab=text.vocab_size,
            dtype_bytes=next(model.parameters()).element_size(),
            kv_limits=self._kv_limits(model, text),
        )
        if getattr(text, "kv_lora_rank", None) is None:
            return shape
        return _with_latents(shape, text, self.attention(self.layers(model)[0]))

    def ffn(self, text: Any) -> int:
        """Width of the FFN that a token passes in a layer: with experts, that of all it visits.

        Experts that every token visits are included. If only some layers have experts, all are
        counted as if they had.

        Args:
            text: The decoder's config.
        """

        def first(*names: str) -> int:
            return next((found for name in names if (found := getattr(text, name, None))), 0)

        visited = first("num_experts_per_tok")
        if not visited or not first("num_experts", "num_local_experts", "n_routed_experts"):
            return int(text.intermediate_size)
        visited += first("n_shared_experts", "num_shared_experts")
        beside = first("shared_expert_intermediate_size", "shared_intermediate_size")
        return visited * first("moe_intermediate_size", "intermediate_size") + beside

    def _kv_limits(self, model: PreTrainedModel, text: Any) -> tuple[int | None, ...]:
        """Largest number of tokens in each layer of a cache; None if it is unlimited."""
        held = DynamicCache(config=text).layers
        limits: list[int | None] = []
        for at in range(len(self.layers(model))):
            layer = held[at] if at < len(held) else None
            window = getattr(layer, "sliding_window", None)
            limits.append(None if window is None else int(window) - 1)
            if self.key_source(model, at) != at:
                limits[at] = 0
        return tuple(limits) if any(limit is not None for limit in limits) else ()


def _with_latents(shape: DecoderShape, text: Any, attention: nn.Module) -> DecoderShape:
    """Widths of latent attention (MLA), whose config may name the rotary width ``head_dim``.

    Older releases of transformers expand the latents before they cache them.
    """
    rotary = text.qk_rope_head_dim
    return replace(
        shape,
        head_dim=text.qk_nope_head_dim + rotary,
        value_dim=text.v_head_dim,
        latent=text.kv_lora_rank + rotary if hasattr(attention, "expand_kv") else None,
        kv_rank=text.kv_lora_rank,
        q_rank=getattr(text, "q_lora_rank", None),
        shared_key=rotary,
    )


def _of_layer_0(text: Any, key: str) -> Any:
    """A width of the first layer, which represents all layers even if they differ (Gemma 4)."""
    found = compat.width(text, key)
    return found[0] if isinstance(found, list) else found


def run_lengths(visual: Tensor) -> list[list[int]]:
    """Lengths of the unbroken runs of visual tokens in each row of [B, S] bool."""
    edges = torch.nn.functional.pad(visual.to(torch.int8), (1, 1)).diff(dim=1).cpu()  # [B, S + 1]
    return [((row == -1).nonzero() - (row == 1).nonzero())[:, 0].tolist() for row in edges]


def run_grid(n: int, image: int = 0) -> ViewGrid:
    """A view of n tokens whose order alone is known: a square if possible, otherwise a row."""
    side = math.isqrt(n)
    return rect_grid(side, side, image=image) if side * side == n else rect_grid(1, n, image=image)


def rect_grid(
    n_rows: int,
    n_cols: int,
    *,
    image: int = 0,
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    time: int = 0,
) -> ViewGrid:
    """A grid in reading order."""
    place = torch.arange(n_rows * n_cols)
    return ViewGrid(
        place // n_cols, place % n_cols, n_rows, n_cols, image=image, region=region, time=time
    )


def square_grid(side: int, n_extra: int = 0, image: int = 0) -> ViewGrid:
    """A side x side grid in reading order; ``n_extra`` class tokens get a last column."""
    place = torch.arange(side * side)
    extra = torch.arange(n_extra)
    has_extra = int(n_extra > 0)
    return ViewGrid(
        torch.cat([extra, place // side]),
        torch.cat([torch.full_like(extra, side), place % side]),
        side,
        side + has_extra,
        n_extra_cols=has_extra,
        image=image,
    )


def whole_images(n_visual: int, n_image: int, what: str) -> int:
    """Number of images of ``n_image`` tokens in a row with ``n_visual`` visual tokens.

    Raises:
        UsageError: The number is not an integer.
    """
    if n_visual % n_image:
        raise UsageError(
            f"The visual tokens of a prompt must be {what} of {n_image} tokens; got {n_visual}."
        )
    return n_visual // n_image


def softcapped(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """[..., V] logits; cap * tanh(logits / cap) if the text config has a cap (Gemma 2 and 4)."""
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap
