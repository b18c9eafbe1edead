"""The law about torch.compile, which is not part of the suite: tracing a model takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters

from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.outcomes import Broken
from tpcal.plans.laws.rounding import distance
from tpcal.plans.laws.trial import Trial
from tpcal.plans.laws.verdict import Law

N_PER_LAYER = 12
"""Graphs that one plan may take per layer: of three parts, at a fixed and at any length, for
prompts and for decoding."""


def compiled(trial: Trial) -> str:
    """A compiled decoder gives the same logits, and soon needs no new graphs for any length."""
    name = "attention" if "attention" in trial.plans else "content"
    expected = {row: trial.pruned(name, str(row)).logits for row in trial.with_images}
    found, built = {}, []
    with _compiled(trial), apply(trial.model, trial.plans[name], check=False):
        for turn in ("first", "second"):
            counters.clear()
            for row, logits in expected.items():
                run = trial.forward(trial.case.rows[row])
                found[f"{turn} run of prompt {row}"] = distance(run.logits, logits)
            built.append(counters["stats"]["unique_graphs"])
    for what, different in found.items():
        trial.require_close(different, what)
    allowed = N_PER_LAYER * trial.n_layers
    if built[0] > allowed:
        raise Broken(f"{built[0]} graphs for {len(expected)} lengths (allowed {allowed})")
    if not built[0] or built[1]:
        raise Broken(f"{built[0]} graphs at first, and {built[1]} more for the same prompts")
    return f"{built[0]} graphs for {len(expected)} lengths; {trial.within(list(found.values()))}"


COMPILED = Law("compiled", compiled)


@contextmanager
def _compiled(trial: Trial) -> Iterator[None]:
    """Compiles the decoder, with room for the graphs of its layers; restores it afterwards."""
    decoder = trial.family.decoder(trial.model)
    before = decoder._compiled_call_impl
    torch.compiler.reset()
    try:
        with torch._dynamo.config.patch(recompile_limit=16 * trial.n_layers):
            decoder.compile(backend="eager")
            yield
    finally:
        decoder._compiled_call_impl = before
        torch.compiler.reset()
