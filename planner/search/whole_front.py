"""Plans from what was measured before: the whole front once, then any budget without the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage

from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search import front as fronts
from tpcal.planner.search.correction import FEWEST, Correction
from tpcal.planner.search.encoding import canonical
from tpcal.planner.search.finished_plan import finished_plan
from tpcal.planner.search.front import BUDGETS, MeasuredPoint, Point
from tpcal.planner.search.ledger import (
    GroupMeans,
    Ledger,
    is_of_whole_front,
    mark_of_whole_front,
)
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import BudgetError
from tpcal.plans.schema import Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

Progress = Callable[[int, int, str], None]
N_TRIALS = 300
FEWEST_TRIALS = 6
"""Of each budget of the front."""
STEP = 1.6
"""Measured plans this many times cheaper and dearer than a budget tell what is best on it: the
budgets of the front lie closer, up to one twice the other at the cheap end."""
N_MOVED = 40


def whole_front(
    profile: Profile,
    *,
    measurer: Measures,
    n_trials: int = N_TRIALS,
    timeout: float | None = None,
    storage: Path | str | BaseStorage | None = None,
    weights: Mapping[str, float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Point, ...]:
    """Searches every budget of `BUDGETS` that can be reached, and returns the front.

    Each is a study like that of a single budget, so an interrupted run continues, and plans that
    one measured are where the next begins.

    Args:
        profile: What calibration found.
        measurer: Runs the model.
        n_trials: Plans measured in all, shared evenly.
        timeout: Seconds after which no further trial starts.
        storage: As `search`, like the arguments not named here.
        weights: As `search`.
        progress: Told after every trial of any budget.

    Raises:
        UsageError: As `search`.
    """
    predictor = Predictor(profile, Objective(weights or {}))
    ledger = Ledger.open(storage, profile)
    budgets = [budget for budget in BUDGETS if budget >= predictor.limits.least]
    share = max(FEWEST_TRIALS, n_trials // max(1, len(budgets)))
    end = None if timeout is None else time.monotonic() + timeout
    for place, budget in enumerate(budgets):
        left = None if end is None else max(0.0, end - time.monotonic())
        found = search(
            profile,
            budget,
            measurer=measurer,
            n_trials=share,
            timeout=left,
            storage=ledger.storage,
            weights=weights,
            progress=progress and _of_all(place * share, len(budgets) * share, progress),
            **options,
        )
        if end is not None and time.monotonic() >= end:
            break  # this budget and the ones after it are not searched yet
        if found.study is not None:
            mark_of_whole_front(ledger.load(found.study))
    return fronts.front(predictor, ledger.storage)


def is_searched(predictor: Predictor, ledger: Ledger) -> bool:
    """Whether `whole_front` has searched all budgets that can be reached."""
    n_searched = sum(map(is_of_whole_front, ledger.studies()))
    return n_searched >= sum(b >= predictor.limits.least for b in BUDGETS)


def _of_all(done: int, total: int, progress: Progress) -> Progress:
    return lambda more, of, what: progress(done + more, total, what)


@dataclass(frozen=True)
class KnownPlan:
    """A plan that no model was run for."""

    plan: Plan
    measured: bool
    """Whether this very plan was measured before; otherwise its loss is predicted."""
    n_measured: int
    """Plans that it was chosen by."""


def answer(
    profile: Profile,
    budget: Budget,
    storage: Path | str | BaseStorage,
    *,
    weights: Mapping[str, float] | None = None,
    max_cuts: int = 4,
    seed: int = 0,
    command: str | None = None,
) -> KnownPlan | None:
    """The best plan for a budget by what was measured for others; None where that says too little.

    It says enough after `whole_front`, where `FEWEST` or more plans were measured, some of them on
    both sides within a factor `STEP` of the budget. Searches for single budgets alone do not:
    another one is better searched than guessed from those. The plans near by, put on the budget,
    are compared, by the prediction corrected with all that was measured, with the measured plans
    that cost no more.

    Args:
        profile: What calibration found.
        budget: What the plan may cost.
        storage: Where its searches are kept.
        weights: As `search`, like the other arguments.
        max_cuts: Most cuts of the plan.
        seed: Kept as provenance.
        command: Kept as provenance.

    Raises:
        UsageError: A bad budget or weight, or ``storage`` cannot be used.
        BudgetError: No plan is that cheap.
    """
    predictor = Predictor(profile, Objective(weights or {}))
    predictor.prices.check(budget)
    if budget.kind == LAYER_AVERAGE:
        predictor.limits.budget(budget.target)
    ledger = Ledger.open(storage, profile)
    if not is_searched(predictor, ledger):
        return None
    known = fronts.on_one_set(predictor, ledger)
    wanted = predictor.prices.average(budget)
    near = [m for m in known if wanted / STEP <= m.point.layer_average_keep <= wanted * STEP]
    if len(known) < FEWEST or not _on_both_sides(near, wanted):
        return None
    chosen, found = _best(predictor, budget, known, near, max_cuts)
    front = fronts.pareto(m.point for m in known)
    beside = fronts.beside(front, fronts.average(predictor, chosen))
    facts = {
        "seed": seed,
        "command": command,
        "weights": dict(weights) if weights else None,
        "sampler": "none: chosen by plans measured for other budgets",
        "loss": "measured" if found else "predicted",
        "n_trials": len(known),
        "front": beside or None,
    }
    means = GroupMeans(found.measured, found.flips) if found else None
    plan = finished_plan(predictor, budget, chosen, facts, means)
    return KnownPlan(plan, found is not None, len(known))


def _on_both_sides(near: Sequence[MeasuredPoint], wanted: float) -> bool:
    costs = [m.point.layer_average_keep for m in near]
    if not costs:
        return False
    return min(costs) <= wanted and (max(costs) >= wanted or wanted * STEP >= 1)


def _best(
    predictor: Predictor,
    budget: Budget,
    known: Sequence[MeasuredPoint],
    near: Sequence[MeasuredPoint],
    max_cuts: int,
) -> tuple[tuple[Cut, ...], MeasuredPoint | None]:
    """The cuts, and what was measured of them."""
    allowed = budget.target * (1 + 1e-9)
    fitting = [
        m
        for m in known
        if len(m.point.cuts) <= max_cuts
        and predictor.prices.of(m.point.cuts, budget.kind) <= allowed
    ]
    ranked = sorted(near, key=lambda m: m.point.loss)[:N_MOVED]
    moved = dict.fromkeys(
        tuple(map(canonical, fill(predictor, m.point.cuts, budget))) for m in ranked
    )
    fresh = [cuts for cuts in moved if len(cuts) <= max_cuts]
    values = {m.point.cuts: m.point.loss for m in known}
    correction = Correction(predictor, values, predictor.prices.average(budget))
    scores = dict(zip(fresh, correction.scores(fresh).tolist(), strict=True))
    best = min(fitting, key=lambda m: m.point.loss, default=None)
    fresh = [cuts for cuts in fresh if cuts not in values]
    dear = min(fresh, key=lambda cuts: scores[cuts], default=None)
    if best is None and dear is None:
        raise BudgetError("No measured plan can be put on this budget.", predictor.limits.least)
    if dear is None or (best is not None and best.point.loss <= scores[dear]):
        assert best is not None
        return best.point.cuts, best
    return dear, None
