"""Gemma 4, small: inputs per layer; the last four layers read the keys of earlier ones."""

from __future__ import annotations

from tiny.gemma4 import TEXT, with_text
from tpcal.plans.laws import Case


def build(attn: str) -> Case:
    text = {
        **TEXT,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 4,
        "use_double_wide_mlp": True,
    }
    return with_text("gemma4_shared", attn, text)
