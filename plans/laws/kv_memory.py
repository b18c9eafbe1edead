"""Laws about the KV cache: every layer holds what the plan states, and the handle reports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tpcal.plans.cost import kv_bytes as kv_formula
from tpcal.plans.executor.handle import Report, apply, kv_bytes
from tpcal.plans.executor.pruned_layers import PrunedKV
from tpcal.plans.families import decoder_shape
from tpcal.plans.laws.case import Inputs
from tpcal.plans.laws.outcomes import Broken
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Plan


def kv_lengths(trial: Trial) -> str:
    """Each layer's K and V have the plan's length and allocate exactly the bytes reported."""
    total = full = 0
    rows = [trial.case.rows[at] for at in trial.with_images]
    batches = [[row] for row in rows] + [[rows[0], rows[0]]]
    # how many tokens a conditional cut keeps is known only afterwards
    plans = [p for p in trial.plans.values() if all(cut.condition is None for cut in p.cuts)]
    for prompts in batches:
        inputs = trial.case.batch(prompts)
        full += len(plans) * sum(kv_bytes(trial.forward(inputs, n_steps=0).cache))
        for plan in plans:
            with apply(trial.model, plan, check=False) as handle:
                cache = trial.forward(inputs, n_steps=0).cache
            _require_schedule(trial, plan, prompts[0], handle.last)
            total += _require_held(trial, inputs, cache, handle.last)
    return f"{total / full:.0%} of the unpruned bytes in {len(batches)} batches, as planned"


def _require_schedule(trial: Trial, plan: Plan, row: Inputs, report: Report | None) -> None:
    """Raises Broken if the lengths of the layers are not those of the plan's formula."""
    assert report is not None
    n_text = row["input_ids"].shape[1] - int(trial.visual(row).sum())
    planned = [n + n_text for n in plan.schedule(report.image_sizes[0], trial.n_layers)]
    if list(report.lengths) != planned:
        raise Broken(f"the layers got {list(report.lengths)} tokens, the plan says {planned}")


def _require_held(trial: Trial, inputs: Inputs, cache: Any, report: Report | None) -> int:
    """Total bytes if every layer holds the tokens that reached it and lie in its window."""
    assert report is not None
    reported = kv_bytes(cache)
    held = [_n_columns(layer) for layer in cache.layers[: trial.n_layers]]
    for at, n_held in enumerate(held):
        layer = cache.layers[at] if trial.family.key_source(trial.model, at) == at else None
        wanted = 0 if layer is None else _n_in_window(trial, inputs, report, at, layer)
        if n_held != wanted:
            raise Broken(f"layer {at} holds {n_held} tokens instead of {wanted}")
        stock_window = getattr(layer, "is_sliding", False) and not isinstance(layer, PrunedKV)
        if n_held and not stock_window:  # which is a view of all it saw
            _require_allocated(at, layer, reported[at])
    _require_formula(trial, len(inputs["input_ids"]), held, reported)
    return sum(reported)


def _n_in_window(trial: Trial, inputs: Inputs, report: Report, at: int, layer: Any) -> int:
    """Tokens of a prompt that reach a layer and that a later query still sees."""
    length = inputs["input_ids"].shape[1]
    places = trial.places(inputs, report.cuts, at)
    first = length - layer.sliding_window + 1 if getattr(layer, "is_sliding", False) else 0
    if places is None:
        return min(length, length - first)
    return int((places[0] >= first).sum())


def _require_formula(
    trial: Trial, n_rows: int, held: Sequence[int], reported: Sequence[int]
) -> None:
    """Raises Broken if the cost formula gives other bytes; it assumes one width for all layers."""
    # Before transformers 5.23, a cache ends before the layers that have no keys of their own.
    held = [*held, *[0] * (trial.n_layers - len(held))]
    widths = {n_bytes // n for n_bytes, n in zip(reported, held, strict=False) if n}
    formula = n_rows * kv_formula(decoder_shape(trial.model), held)
    if len(widths) == 1 and sum(reported) != formula:
        raise Broken(f"{sum(reported)} bytes are reported, the cost formula says {formula}")


def _require_allocated(at: int, layer: Any, reported: int) -> None:
    tensors = (layer.keys, layer.values)
    allocated = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    if reported != allocated:
        raise Broken(f"layer {at} reports {reported} bytes, {allocated} are allocated")


def _n_columns(layer: Any) -> int:
    keys = getattr(layer, "keys", None)
    return 0 if keys is None or keys.ndim < 4 else keys.shape[-2]
