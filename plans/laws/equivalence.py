"""Laws about logits: a pruned run equals the mask-based reference and its own recomputation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tpcal.plans.executor.cutting import prepare
from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.outcomes import Broken, Inapplicable
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import N_STEPS, Trial
from tpcal.plans.plan_records import Cut, Plan

_SEEN, _SEEN_IN_NOISE = 1000.0, 2.0  # times the allowed difference: no effect of rounding


def reference(trial: Trial) -> str:
    """A pruned prefill and decode equal the model with the same tokens hidden by its masks."""
    found = []
    for name, plan in trial.plans.items():
        if _merges(plan):
            continue  # in the reference, hidden tokens cannot be merged into others
        run = trial.pruned(name, "left")
        wanted = trial.reference(trial.left, run.report, plan=plan)
        found.append(_compared(trial, run.logits, wanted, f"plan {name}"))
        _require_effect(trial, run.logits, name)
    return f"{len(found)} plans, prefill and {N_STEPS} steps: {trial.within(found)}"


def recompute(trial: Trial) -> str:
    """Decoding on the pruned cache equals running the whole text again under the same plan."""
    trial.repeatable()
    run = trial.pruned("content", "left")  # chosen by place, so the longer text keeps the same
    whole = trial.case.extended(trial.left, trial.words(len(trial.left["input_ids"])))
    with apply(trial.model, trial.plans["content"], check=False):
        position_ids = trial.case.numbered(whole)
        again = trial.model(**whole, position_ids=position_ids, use_cache=False).logits
    return trial.within([_compared(trial, run.logits, again, "decoding")])


def drop_all(trial: Trial) -> str:
    """All visual tokens can leave before the first layer, in the middle or before the last."""
    found, layers = [], []
    for at in (0, trial.n_layers // 2, trial.n_layers - 1):
        if not trial.fits(Cut(at, 0.0)):
            continue
        layers.append(at)
        with apply(trial.model, Plan((Cut(at, 0.0),))) as handle:
            run = trial.forward(trial.left, n_steps=2)
            report = handle.last
        assert report is not None
        if any(map(len, report.cuts[0].kept)):
            raise Broken(f"before layer {at} something stayed")
        wanted = trial.reference(trial.left, report, n_steps=2)
        found.append(_compared(trial, run.logits, wanted, f"before layer {at}"))
    if not found:
        raise Inapplicable("the model cannot be cut before these layers")
    return f"before layers {layers}: {trial.within(found)}"


def positions(trial: Trial) -> str:
    """After a cut every token keeps the rotary tables of its original position."""
    inputs = trial.left
    with _calls(trial) as wanted:
        trial.forward(inputs, n_steps=1)
    if not any(map(_tables, wanted)):
        raise Inapplicable("the layers are called without position tables")
    with apply(trial.model, trial.plans["content"], check=False) as handle, _calls(trial) as got:
        trial.forward(inputs, n_steps=1)
    assert handle.last is not None
    n_compared = 0
    for at, (full, call) in enumerate(zip(wanted, got, strict=True)):
        layer = at % trial.n_layers
        places = None if at >= trial.n_layers else trial.places(inputs, handle.last.cuts, layer)
        for one, two in zip(_tables(full), _tables(call), strict=True):
            n_compared += _same_places(one, two, places, layer)
    return f"{n_compared} table rows of {trial.n_layers} layers equal bit by bit"


def _merges(plan: Plan) -> bool:
    """Whether a selector changes the states of tokens that stay."""
    selectors = [cut.selector for cut in prepare(plan).values()]
    return any(s is not None and s.merges for s in selectors)


def _compared(trial: Trial, logits: Tensor, wanted: Tensor, what: str) -> float:
    found = distance(trial.at_text(trial.left, logits), trial.at_text(trial.left, wanted))
    return trial.require_close(found, what)


def _require_effect(trial: Trial, logits: Tensor, plan: str) -> None:
    """Raises Inapplicable if the effect of a plan is as small as that of rounding."""
    unpruned = trial.unpruned("left").logits
    effect = distance(trial.at_text(trial.left, logits), trial.at_text(trial.left, unpruned))
    if effect > trial.allowed * (_SEEN if trial.is_exact else _SEEN_IN_NOISE):
        return
    finding = f"plan {plan} changes logits by {effect:.1e} only, so equality shows nothing"
    raise Broken(finding) if trial.is_exact else Inapplicable(finding)


@contextmanager
def _calls(trial: Trial) -> Iterator[list[dict[str, Any]]]:
    """The keyword arguments of each layer call, in order."""
    calls: list[dict[str, Any]] = []

    def before_layer(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.append(kwargs)

    hooks = [
        layer.register_forward_pre_hook(before_layer, with_kwargs=True)
        for layer in trial.family.layers(trial.model)
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _tables(call: dict[str, Any]) -> list[Tensor]:
    """The position tables of a layer call, or its position ids if it gets no tables."""
    given = call.get("position_embeddings")
    if given is None:
        given = call.get("position_ids")
    return list(_flat(given))


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        # Before transformers 5.17, tables of M-RoPE are one for each axis, [3, B, S, d].
        yield from value if value.ndim == 4 else (value,)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)


def _same_places(full: Tensor, got: Tensor, places: list[Tensor] | None, layer: int) -> int:
    """Number of rows of a table that were compared; the tokens of a row are on the right."""
    if places is None:
        if not torch.equal(full, got):
            raise Broken(f"layer {layer}: the tables before a cut or of a decode step differ")
        return full.shape[1]
    for row, kept in enumerate(places):
        wanted = full[min(row, len(full) - 1), kept]
        here = got[min(row, len(got) - 1), got.shape[1] - len(kept) :]
        if not torch.equal(wanted, here):
            raise Broken(f"layer {layer}, row {row}: not the tables of the tokens kept")
    return sum(map(len, places))
