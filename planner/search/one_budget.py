"""Chooses a plan for a budget: prediction first, then an Optuna study on the measured loss.

The loss is `Objective` of the groups' KL(full || pruned). A study continues where it stopped, and
the same seed gives the same plan, interrupted or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.study import Study

from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.problem import Problem
from tpcal.planner.search import front as fronts
from tpcal.planner.search.finals import best_finalist, completed
from tpcal.planner.search.finished_plan import finished_plan, search_facts
from tpcal.planner.search.front import Point
from tpcal.planner.search.ledger import (
    GroupMeans,
    Ledger,
    TrialRecord,
    cuts_of,
    finished,
    fully_measured,
    means_of,
    rank,
    trial_record,
)
from tpcal.planner.search.loss_limits import LossLimits
from tpcal.planner.search.run import run
from tpcal.planner.search.sampler import SUGGESTED_BY
from tpcal.planner.search.settings import SearchSettings
from tpcal.planner.search.trials import Measures
from tpcal.plans.plan_records import FURTHER, OWN, Cut, Plan
from tpcal.plans.progress import Progress


@dataclass(frozen=True)
class Result:
    """What a search found."""

    plan: Plan
    front: tuple[Point, ...]
    trials: tuple[TrialRecord, ...] = ()
    study: str | None = None


def search(
    problem: Problem,
    *,
    measurer: Measures | None = None,
    finals: Measures | None = None,
    settings: SearchSettings | None = None,
    max_loss: float | None = None,
) -> Result:
    """The plan that loses least within a budget, and the front it lies on.

    Example:
        >>> import tpcal
        >>> from tpcal.planner.problem import Problem
        >>> from tpcal.planner.search.one_budget import search
        >>> found = search(Problem.of(tpcal.load_profile("tpcal-out").profile, 0.5))
        >>> round(found.plan.cost.layer_average_keep, 2)
        0.5

    Args:
        problem: The profile, what the plan may cost, and how many cuts it may have.
        measurer: Runs the model; None: the plan is chosen by prediction alone, without Optuna.
        finals: Measures the best plans again, on other samples; the plan's loss is from these.
        settings: How the search runs.
        max_loss: Nats the worst group may lose.

    Raises:
        UsageError: ``settings.storage`` cannot be used.
        BudgetError: No plan is that cheap.
        GuardrailError: The best plan's worst group loses more than ``max_loss``.
    """
    settings = settings or SearchSettings()
    if measurer is None or problem.allows_unpruned:
        result = _predicted(problem, settings)
    else:
        ledger = Ledger.open(settings.storage, problem.profile)
        study = run(problem, measurer, ledger, settings)
        chosen = _chosen(problem, study, measurer, finals, settings.progress)
        known = fronts.measured(problem.predictor, ledger.studies(measurer))
        result = _measured(problem, settings, study, chosen, [found.point for found in known])
    _guard(result.plan, max_loss)
    return result


def _predicted(problem: Problem, settings: SearchSettings) -> Result:
    """The plan chosen by prediction alone."""
    predictor = problem.predictor
    cuts = worst_group_optimum(predictor, problem.budget)
    points = [*fronts.predictions(predictor), fronts.point(predictor, cuts)]
    facts = search_facts(problem, settings) | {"sampler": "prediction only"}
    return _finished(problem, cuts, facts, points)


@dataclass(frozen=True)
class _Chosen:
    """The plan that a search chose."""

    cuts: tuple[Cut, ...]
    means: GroupMeans | None
    """What it lost; None if it was not measured."""
    measured_on: str | None
    """On which samples."""


def _chosen(
    problem: Problem,
    study: Study,
    measurer: Measures,
    finals: Measures | None,
    progress: Progress | None,
) -> _Chosen:
    """The best plan; the predicted optimum if none was measured."""
    full = fully_measured(study)
    if not full:  # there was no time for a trial
        optimum = worst_group_optimum(problem.predictor, problem.budget)
        return _Chosen(optimum, None, None)
    final = finals and best_finalist(study, measurer, finals, problem.objective, progress)
    if final:
        means = completed(final.means, means_of(final.trial))
        return _Chosen(cuts_of(final.trial), means, FURTHER)
    best = min(full, key=rank)
    return _Chosen(cuts_of(best), means_of(best), OWN)


def _measured(
    problem: Problem,
    settings: SearchSettings,
    study: Study,
    chosen: _Chosen,
    points: Sequence[Point],
) -> Result:
    """The plan chosen by what was measured."""
    facts = search_facts(problem, settings) | {
        "sampler": SUGGESTED_BY,
        "study": study.study_name,
        "n_trials": len(fully_measured(study)),
        "measured_on": chosen.measured_on,
    }
    result = _finished(problem, chosen.cuts, facts, points, chosen.means)
    return replace(
        result, trials=tuple(map(trial_record, finished(study))), study=study.study_name
    )


def _finished(
    problem: Problem,
    cuts: tuple[Cut, ...],
    facts: Mapping[str, Any],
    points: Sequence[Point],
    means: GroupMeans | None = None,
) -> Result:
    front = fronts.pareto(points)
    beside = fronts.neighbours_on_front(front, fronts.average(problem.predictor, cuts))
    plan = finished_plan(problem, cuts, {**facts, "front": beside or None}, means)
    return Result(plan, front)


def _guard(plan: Plan, max_loss: float | None) -> None:
    if max_loss is None or plan.loss is None:
        return
    kind = "measured" if plan.loss.measured else "predicted"
    losses = plan.loss.measured or plan.loss.predicted
    LossLimits(max_loss).guard(losses, plan.loss.changed, {}, kind)
