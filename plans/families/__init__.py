"""Families: the code for each model architecture. Every module in this folder is registered."""

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
from tpcal.plans.executor import compat
from tpcal.plans.families import _refused
from tpcal.plans.families.base import Family
from tpcal.plans.plan_records import ModelIdentity

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
_EXPERTS = (
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
)
"""Keys that belong to the structure if a config has them."""


@cache
def families() -> dict[str, Family]:
    """All families by name, sorted."""
    names = sorted(
        m.name
        for m in pkgutil.iter_modules(__path__)
        if m.name != "base" and not m.name.startswith("_")
    )
    found = (import_module(f"{__name__}.{name}").FAMILY for name in names)
    return {family.name: family for family in found}


def find(model: PreTrainedModel) -> Family:
    """The family that supports this model; the generic one if no family names its class.

    Raises:
        UsageError: No family supports the model.
    """
    kind = type(model).__name__
    if hasattr(model, "get_base_model"):
        raise UsageError(
            f"A plan is applied to the model that {kind} (PEFT) wraps: pass "
            "model.get_base_model(). Adapters stay at work, and the wrapper runs the plan too."
        )
    for family in families().values():
        if kind in family.architectures:
            return family
    generic = families()["generic"]
    reason = _refused.reason(model, generic)
    if reason is None:
        return generic
    raise UsageError(
        f"{kind} has no family. {reason} Families: {', '.join(families())}. "
        "Add plans/families/<name>.py (docs/families.md)."
    )


def identity(
    model: PreTrainedModel, name: str | None = None, revision: str | None = None
) -> ModelIdentity:
    """The identity of a model that a plan stores; the fingerprint covers widths, not weights."""
    family = find(model)
    text = _text_config(model)
    structure = {key: compat.width(text, key) for key in _STRUCTURE}
    structure |= {key: compat.width(text, key) for key in _EXPERTS if hasattr(text, key)}
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
