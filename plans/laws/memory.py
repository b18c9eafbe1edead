"""Laws about the KV cache: every layer holds what the plan says, and the handle reports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpcal.plans.cache import PrunedKV
from tpcal.plans.cost import kv_bytes as kv_formula
from tpcal.plans.execute import apply, kv_bytes
from tpcal.plans.families import decoder_shape
from tpcal.plans.laws.case import Inputs
from tpcal.plans.laws.trial import Trial
from tpcal.plans.laws.verdict import Broken
from tpcal.plans.schema import Plan


def kv_lengths(trial: Trial) -> str:
    """Each layer's K and V have the plan's length and the bytes reported, which are allocated."""
    total = full = 0
    rows = [trial.case.rows[at] for at in trial.with_images]
    batches = [[row] for row in rows] + [[rows[0], rows[0]]]
    # how many tokens a conditional cut keeps is known only afterwards
    plans = [p for p in trial.plans.values() if all(cut.condition is None for cut in p.cuts)]
    for prompts in batches:
        inputs = trial.case.batch(prompts)
        full += len(plans) * sum(kv_bytes(trial.forward(inputs, n_steps=0).cache))
        for plan in plans:
            with apply(trial.model, plan, check=False):
                cache = trial.forward(inputs, n_steps=0).cache
            planned = [_length(trial, plan, prompts[0], at, cache) for at in range(trial.n_layers)]
            total += _require_held(trial, cache, planned, len(prompts))
    return f"{total / full:.0%} of the unpruned bytes in {len(batches)} batches, as planned"


def _length(trial: Trial, plan: Plan, row: Inputs, at: int, cache: Any) -> int:
    """Tokens of the prompt that layer ``at`` should hold."""
    if trial.family.key_source(trial.model, at) != at:
        return 0
    n_visual = int(trial.visual(row).sum())
    n_text = row["input_ids"].shape[1] - n_visual
    planned = plan.schedule(n_visual, trial.n_layers)[at] + n_text
    layer = cache.layers[at]
    if not getattr(layer, "is_sliding", False):
        return planned
    return min(planned, layer.sliding_window - 1)


def _require_held(trial: Trial, cache: Any, planned: Sequence[int], n_rows: int) -> int:
    """Total bytes, where every layer holds what is planned."""
    reported = kv_bytes(cache)
    held = [_n_columns(layer) for layer in cache.layers[: trial.n_layers]]
    for at, (layer, n_held, n_planned) in enumerate(
        zip(cache.layers, held, planned, strict=False)
    ):
        sliding = getattr(layer, "is_sliding", False)
        if n_held != n_planned and not (sliding and n_held < n_planned):
            raise Broken(f"layer {at} holds {n_held} tokens, the plan says {n_planned}")
        if isinstance(layer, PrunedKV) or not sliding:  # a stock window is a view of what it saw
            _require_allocated(at, layer, reported[at])
    widths = {n // m for n, m in zip(reported, held, strict=False) if m}
    formula = n_rows * kv_formula(decoder_shape(trial.model), held)
    if len(widths) == 1 and sum(reported) != formula:
        raise Broken(f"{sum(reported)} bytes are reported, the cost formula says {formula}")
    return sum(reported)


def _require_allocated(at: int, layer: Any, reported: int) -> None:
    tensors = [layer.keys, layer.values] if _n_columns(layer) else []
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    if reported != allocated:
        raise Broken(f"layer {at} reports {reported} bytes, {allocated} are allocated")


def _n_columns(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return 0 if keys is None or keys.ndim < 4 else keys.shape[-2]
