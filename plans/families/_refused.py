"""Finds out from the structure of a model why the generic family cannot support it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from tpcal.plans.families.base import Family

_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers from which keys may be removed without changing the other keys."""

_NO_DECODER = "It has no decoder with layers that get_decoder() finds."


def reason(model: PreTrainedModel, family: Family) -> str | None:
    """Reason why ``family`` cannot support the model, in one or two sentences; None if it can."""
    if not isinstance(model, PreTrainedModel):
        return _NO_DECODER
    return _images(model, family) or _decoder(model, family) or _tokens(model, family)


def _images(model: PreTrainedModel, family: Family) -> str | None:
    """How images come into the model."""
    config: Any = model.config
    if config.is_encoder_decoder:
        return (
            "It is an encoder-decoder: its decoder reads images from the encoder by "
            "cross-attention, so no visual tokens stand in its layers."
        )
    if hasattr(model.base_model, "gated_cross_attn_layers") or any(
        hasattr(layer, "cross_attn") for layer in _layers_of(model, family) or ()
    ):
        return (
            "Its decoder reads images by cross-attention, so that no visual tokens stand in its "
            "prompts."
        )
    if hasattr(config, "qformer_config") and hasattr(config, "num_query_tokens"):
        return (
            f"A Q-former makes {config.num_query_tokens} tokens of every image before the "
            "decoder, which leaves nothing worth dropping."
        )
    return None


def _decoder(model: PreTrainedModel, family: Family) -> str | None:
    """Whether the decoder is a plain loop over layers."""
    text: Any = model.config.get_text_config(decoder=True)
    if hasattr(text, "altup_num_inputs"):
        return (
            f"Its layers pass on {text.altup_num_inputs} copies of the states at once (AltUp), "
            "not one of shape [B, N, D]."
        )
    layers = _layers_of(model, family)
    if layers is None:
        return _NO_DECODER
    if not len(layers):
        return "Its decoder has no layers."
    unfit = _unfit(layers, getattr(text, "layer_types", None) or ())
    if unfit is not None:
        return unfit
    if hasattr(family.decoder(model), "_deepstack_process"):
        return (
            "Its decoder adds vision features between its layers (DeepStack), which a family has "
            "to give to the right tokens."
        )
    try:
        family.final_norm(model)
    except AttributeError:
        return "Its decoder has no last norm called norm."
    return None


def _layers_of(model: PreTrainedModel, family: Family) -> nn.ModuleList | None:
    try:
        return family.layers(model)
    except (AttributeError, NotImplementedError):
        return None


def _unfit(layers: nn.ModuleList, kinds: Iterable[str]) -> str | None:
    """Whether all layers are softmax attention over keys of single tokens."""
    stateful = [str(at) for at, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    if stateful:
        return (
            f"Its layers {', '.join(stateful)} have no softmax attention (self_attn): they carry "
            "a state along the sequence (linear attention, convolution), so that a token that "
            "leaves changes what all later ones read, as does the filler of uneven rows."
        )
    unknown = sorted({kind for kind in kinds if kind not in _KINDS})
    if unknown:
        return (
            f"Its layers are of kind {', '.join(unknown)}; a plan runs in layers of kind "
            f"{', '.join(_KINDS)}, where every key belongs to one token."
        )
    return None


def _tokens(model: PreTrainedModel, family: Family) -> str | None:
    """Whether a prompt says where its visual tokens stand."""
    if family.visual_ids(model):
        return None
    return "Its config names no image token, so no visual tokens stand in its prompts."
