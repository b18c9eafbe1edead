"""Families: code that knows one model architecture. The directory listing is the registry."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from transformers import PreTrainedModel

from tpcal.plans.cost import DecoderShape
from tpcal.plans.errors import UsageError
from tpcal.plans.families.base import Family
from tpcal.plans.schema import ModelIdentity

_STRUCTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "sliding_window",
)


@cache
def families() -> dict[str, Family]:
    """All families by name, sorted."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    found = (import_module(f"{__name__}.{name}").FAMILY for name in names)
    return {family.name: family for family in found}


def find(model: PreTrainedModel) -> Family:
    """The family that serves this model; the generic one where it has none of its own.

    Raises:
        UsageError: None does.
    """
    kind = type(model).__name__
    for family in families().values():
        if kind in family.architectures:
            return family
    generic = families()["generic"]
    reason = _refused(model, generic)
    if reason is None:
        return generic
    raise UsageError(
        f"{kind} has no family. {reason} Families: {', '.join(families())}. "
        "Add plans/families/<name>.py (docs/families.md)."
    )


def _refused(model: PreTrainedModel, generic: Family) -> str | None:
    """Why not even the generic family serves this model."""
    try:
        layers = generic.layers(model)
    except (AttributeError, NotImplementedError):
        return "It has no decoder with layers that get_decoder() finds."
    if not len(layers):
        return "Its decoder has no layers."
    if not generic.visual_ids(model):
        return "Its config names no image token, so no visual tokens stand in its prompts."
    stateful = [str(at) for at, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    if stateful:
        return (
            f"Its layers {', '.join(stateful)} have no softmax attention (self_attn): they carry "
            "a state along the sequence (linear attention, convolution), so that a token that "
            "leaves changes what all later ones read, as does the filler of uneven rows."
        )
    return None


def identity(
    model: PreTrainedModel, name: str | None = None, revision: str | None = None
) -> ModelIdentity:
    """What a plan remembers of a model; the fingerprint is of widths and depth, not weights."""
    family = find(model)
    text = _text_config(model)
    structure = {key: _width(text, key) for key in _STRUCTURE}
    structure["architecture"] = type(model).__name__
    canonical = json.dumps(structure, sort_keys=True, default=str)
    return ModelIdentity(
        n_layers=len(family.layers(model)),
        name=name,
        revision=revision,
        family=family.name,
        architecture=type(model).__name__,
        fingerprint=f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}",
    )


def decoder_shape(model: PreTrainedModel) -> DecoderShape:
    """Widths of the model's decoder."""
    return find(model).shape(model)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _width(text: Any, key: str) -> Any:
    """One value, or one for every layer where they differ (Gemma 4)."""
    if key in (text.per_layer_attributes or ()):
        return [getattr(layer, key, None) for layer in text.per_layer_config]
    return getattr(text, key, None)
