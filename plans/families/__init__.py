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
    """The family that serves this model.

    Raises:
        UsageError: None does.
    """
    kind = type(model).__name__
    for family in families().values():
        if kind in family.architectures:
            return family
    raise UsageError(
        f"{kind} has no family. Families: {', '.join(families())}. Add plans/families/<name>.py."
    )


def identity(
    model: PreTrainedModel, name: str | None = None, revision: str | None = None
) -> ModelIdentity:
    """What a plan remembers of a model; the fingerprint is of widths and depth, not weights."""
    family = find(model)
    text = _text_config(model)
    structure = {key: getattr(text, key, None) for key in _STRUCTURE}
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
    text = _text_config(model)
    n_heads = text.num_attention_heads
    return DecoderShape(
        n_layers=len(find(model).layers(model)),
        hidden=text.hidden_size,
        ffn=text.intermediate_size,
        n_heads=n_heads,
        n_kv_heads=getattr(text, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // n_heads,
        vocab=text.vocab_size,
        dtype_bytes=next(model.parameters()).element_size(),
    )


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)
