"""What different losses and objectives choose among measured plans, judged on other samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner.fidelity import Measured
from tpcal.planner.prediction.objective import Objective

Floats = NDArray[np.float64]
TAIL = 0.25
"""Share of the groups whose mean is the tail: those that lose most."""


@dataclass(frozen=True)
class Rule:
    """How a number is made of what a plan loses; the plan of the smallest is chosen."""

    loss: str
    """One of `LOSSES`."""
    objective: str
    """One of `OBJECTIVES`."""


def tail(losses: Floats) -> Floats:
    """[...] means of the quarter of the G groups that lose most, of [..., G] losses."""
    n = int(np.ceil(TAIL * losses.shape[-1]))
    return np.asarray(np.sort(losses, axis=-1)[..., -n:].mean(axis=-1))


def _named(name: str) -> Callable[[Floats], Floats]:
    def values(losses: Floats) -> Floats:
        groups = tuple(map(str, range(losses.shape[-1])))
        return Objective(name=name).values(losses, groups)

    return values


OBJECTIVES: Mapping[str, Callable[[Floats], Floats]] = {
    "mean": _named("mean"),
    "mixed": _named("mixed"),
    "worst": _named("worst"),
    "worst quarter": tail,
}
"""[...] what is made of [..., G] losses; the first three are those of `tpcal plan`."""
PER_TOKEN, PER_ANSWER, CHANGED = "nats per token", "nats per answer", "changed answers"
LOSSES: Mapping[str, Callable[[Measured], Floats]] = {
    PER_TOKEN: lambda plans: plans.nats.astype(np.float64),
    PER_ANSWER: lambda plans: (plans.nats * plans.answer_tokens).astype(np.float64),
    CHANGED: lambda plans: plans.changed.astype(np.float64),
}
"""[P, n] what each sample loses; in nats per answer, a sample counts once for each token."""
RULES = (
    *(Rule(PER_TOKEN, objective) for objective in OBJECTIVES),
    Rule(PER_ANSWER, "mixed"),
    Rule(CHANGED, "mixed"),
)
JUDGES = (
    (PER_TOKEN, "mean"),
    (PER_TOKEN, "worst"),
    (CHANGED, "mean"),
    (CHANGED, "worst"),
)
"""What the chosen plans are judged by."""


def judged(plans: Measured, budget: float, n_splits: int) -> dict[Rule, Floats]:
    """[splits, judges] what the plan that each rule chooses loses on samples that did not choose.

    Half of the samples of each group choose, the others judge; the halves are drawn anew for each
    split, and all rules see the same.
    """
    rng = np.random.default_rng(0)
    own = plans.budget == budget
    losses = {name: made(plans)[own] for name, made in LOSSES.items()}
    found: dict[Rule, list[list[float]]] = {rule: [] for rule in RULES}
    for _ in range(n_splits):
        halves = _halves(plans.sample_group, len(plans.groups), rng)
        chosen_on, judged_on = (
            {name: _by_group(values, half) for name, values in losses.items()} for half in halves
        )
        for rule in RULES:
            plan = np.argmin(OBJECTIVES[rule.objective](chosen_on[rule.loss]))
            judge = [OBJECTIVES[name](judged_on[loss][plan]) for loss, name in JUDGES]
            found[rule].append([float(value) for value in judge])
    return {rule: np.array(values) for rule, values in found.items()}


def _halves(
    sample_group: NDArray[np.int64], n_groups: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """For each group the numbers of one half of its samples, and of the other."""
    halves: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    for group in range(n_groups):
        own = rng.permutation(np.flatnonzero(sample_group == group))
        for half, at in zip(halves, np.array_split(own, 2), strict=True):
            half.append(at)
    return halves


def _by_group(values: Floats, half: list[NDArray[np.int64]]) -> Floats:
    """[P, G] means of [P, n] values over the samples of each group."""
    return np.stack([values[:, at].mean(axis=1) for at in half], axis=1)
