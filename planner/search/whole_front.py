"""Searches the whole front once, and then answers any budget without running the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.problem import Problem
from tpcal.planner.search import front as fronts
from tpcal.planner.search.encoding import canonical
from tpcal.planner.search.finished_plan import finished_plan, search_facts
from tpcal.planner.search.front import BUDGETS, MeasuredPoint, Point
from tpcal.planner.search.ledger import GroupMeans, Ledger, mark_of_whole_front
from tpcal.planner.search.run import run
from tpcal.planner.search.settings import N_TRIALS_OF_FRONT, SearchSettings
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import BudgetError
from tpcal.plans.plan_records import OWN, Cut, Plan

FEWEST_MEASURED = 12
"""Number of measured plans below which a budget is not answered without a search."""
FEWEST_TRIALS = 6
"""Fewest trials of each budget of the front."""
STEP = 1.6
"""Measured plans this many times cheaper and dearer than a budget tell what is best on it: the
budgets of the front lie closer, up to one twice the other at the cheap end."""
N_MOVED = 40
NOISE = 1e-3
"""Nats that mean nothing; they keep the ratio of two small losses from being one of noise."""


def whole_front(
    problem: Problem, *, measurer: Measures, settings: SearchSettings | None = None
) -> tuple[Point, ...]:
    """Searches every budget of `BUDGETS` that can be reached, and returns the front.

    Each is a study like that of a single budget, so an interrupted run continues, and plans that
    one measured are where the next begins.

    Example:
        >>> settings = SearchSettings(300, storage="study.journal")  # doctest: +SKIP
        >>> points = whole_front(  # doctest: +SKIP
        ...     Problem.of(profile), measurer=measurer, settings=settings
        ... )

    Args:
        problem: The profile and how many cuts a plan may have; its budget is not looked at.
        measurer: Runs the model.
        settings: How the search runs; the budgets share the trials evenly, with `FEWEST_TRIALS`
            or more for each. None: `N_TRIALS_OF_FRONT`.

    Raises:
        UsageError: ``settings.storage`` cannot be used.
    """
    settings = settings or SearchSettings(N_TRIALS_OF_FRONT)
    ledger = Ledger.open(settings.storage, problem.profile)
    budgets = _reachable(problem.predictor)
    share = max(FEWEST_TRIALS, settings.n_trials // max(1, len(budgets)))
    end = settings.end
    for place, budget in enumerate(budgets):
        here = problem.at(budget)
        if here.allows_unpruned:
            continue
        part = settings.part(place * share, share, len(budgets) * share, end)
        study = run(here, measurer, ledger, part)
        if end is not None and time.monotonic() >= end:
            break  # this budget and the ones after it are not searched yet
        mark_of_whole_front(study, problem.predictor.engine_name)
    return fronts.front(problem.predictor, ledger.storage, problem.max_cuts)


def is_searched(predictor: Predictor, ledger: Ledger) -> bool:
    """Whether `whole_front` has searched all budgets that can be reached."""
    # Every search of the front takes the budgets in the same order. Interrupted searches, of other
    # seeds or objectives, therefore have together no more of them than the longest one has alone.
    wanted = {Budget(budget).label for budget in _reachable(predictor)}
    return wanted <= ledger.budgets_of_whole_front(predictor.engine_name)


def _reachable(predictor: Predictor) -> list[float]:
    return [budget for budget in BUDGETS if budget >= predictor.limits.least]


@dataclass(frozen=True)
class KnownPlan:
    """A plan that no model was run for."""

    plan: Plan
    measured: bool
    """Whether this plan was measured before; otherwise its loss is predicted."""
    n_measured: int
    """Number of measured plans that it was chosen by."""


def answer(problem: Problem, settings: SearchSettings) -> KnownPlan | None:
    """The best plan for a budget by what was measured for others; None if that says too little.

    It says enough after `whole_front`, if `FEWEST_MEASURED` or more plans were measured, some of
    them on both sides within a factor `STEP` of the budget. Searches for single budgets alone do
    not: another one is better searched than guessed from those. The measured plans that cost no
    more are compared with the plans near by, put on the budget. Such a plan is expected to lose
    what the measured plan lost, times the ratio of the predictions of both.

    Args:
        problem: The profile, what the plan may cost, and how many cuts it may have.
        settings: Where the searches are kept; seed and command are kept as provenance.

    Raises:
        UsageError: ``settings.storage`` cannot be used.
        BudgetError: No plan is that cheap.
    """
    predictor, budget = problem.predictor, problem.budget
    if budget.kind == LAYER_AVERAGE:
        predictor.limits.budget(budget.target)
    ledger = Ledger.open(settings.storage, problem.profile)
    if not is_searched(predictor, ledger):
        return None
    known = fronts.on_one_set(predictor, ledger)
    wanted = predictor.prices.average(budget)
    near = [m for m in known if wanted / STEP <= m.point.layer_average_keep <= wanted * STEP]
    if len(known) < FEWEST_MEASURED or not _on_both_sides(near, wanted):
        return None
    return _known_plan(problem, settings, known, near)


def _known_plan(
    problem: Problem,
    settings: SearchSettings,
    known: Sequence[MeasuredPoint],
    near: Sequence[MeasuredPoint],
) -> KnownPlan:
    chosen, found = _best(problem, known, near)
    front = fronts.pareto(m.point for m in known)
    beside = fronts.neighbours_on_front(front, fronts.average(problem.predictor, chosen))
    facts = {
        **search_facts(problem, settings),
        "sampler": "none: chosen by plans measured for other budgets",
        "measured_on": OWN if found else None,
        "n_trials": len(known),
        "front": beside or None,
    }
    means = GroupMeans(found.measured, found.flips) if found else None
    plan = finished_plan(problem, chosen, facts, means)
    return KnownPlan(plan, found is not None, len(known))


def _on_both_sides(near: Sequence[MeasuredPoint], wanted: float) -> bool:
    costs = [m.point.layer_average_keep for m in near]
    if not costs:
        return False
    return min(costs) <= wanted and (max(costs) >= wanted or wanted * STEP >= 1)


def _best(
    problem: Problem, known: Sequence[MeasuredPoint], near: Sequence[MeasuredPoint]
) -> tuple[tuple[Cut, ...], MeasuredPoint | None]:
    """The cuts, and what was measured of them."""
    predictor, budget, max_cuts = problem.predictor, problem.budget, problem.max_cuts
    allowed = budget.target * (1 + 1e-9)
    fitting = [
        m
        for m in known
        if len(m.point.cuts) <= max_cuts
        and predictor.prices.of(m.point.cuts, budget.kind) <= allowed
    ]
    ranked = sorted(near, key=lambda m: m.point.loss)[:N_MOVED]
    measured = {m.point.cuts for m in known}
    expected: dict[tuple[Cut, ...], float] = {}
    for m in ranked:
        cuts = tuple(map(canonical, fill(predictor, m.point.cuts, budget)))
        if len(cuts) <= max_cuts and cuts not in measured:
            expected.setdefault(cuts, _expected(predictor, cuts, m.point))
    best = min(fitting, key=lambda m: m.point.loss, default=None)
    moved = min(expected, key=lambda cuts: expected[cuts], default=None)
    if moved is not None and (best is None or expected[moved] < best.point.loss):
        return moved, None
    if best is None:
        raise BudgetError("No measured plan can be put on this budget.", predictor.limits.least)
    return best.point.cuts, best


def _expected(predictor: Predictor, cuts: tuple[Cut, ...], near: Point) -> float:
    """What a plan loses if the prediction is as far off as for a measured plan like it."""
    off = (near.loss + NOISE) / (predictor.score(near.cuts) + NOISE)
    return off * predictor.score(cuts)
