"""Searches as tests write them: arguments in one line, sorted here into problem and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpcal.calibrate.profile import Profile
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.problem import Problem
from tpcal.planner.search import one_budget, whole_front, within_a_loss
from tpcal.planner.search.front import Point
from tpcal.planner.search.loss_limits import LossLimits
from tpcal.planner.search.one_budget import Result
from tpcal.planner.search.settings import N_TRIALS_OF_FRONT, SearchSettings
from tpcal.planner.search.whole_front import KnownPlan
from tpcal.planner.search.within_a_loss import PlansWithinLimits
from tpcal.plans.plan_records import Plan

PROBLEM = ("max_cuts", "objective")
CALL = ("measurer", "finals", "max_loss")


def search(profile: Profile, budget: Budget | float, **given: Any) -> Result:
    """`one_budget.search`."""
    problem, call = _sorted(profile, budget, given)
    return one_budget.search(problem, **call)


def cheapest(profile: Profile, loss_limits: LossLimits, **given: Any) -> Plan:
    """`within_a_loss.cheapest`."""
    problem, call = _sorted(profile, 1.0, given)
    return within_a_loss.cheapest(problem, loss_limits, **call)


def explore(profile: Profile, loss_limits: LossLimits, **given: Any) -> PlansWithinLimits:
    """`within_a_loss.explore`."""
    problem, call = _sorted(profile, 1.0, given)
    return within_a_loss.explore(problem, loss_limits, **call)


def search_front(profile: Profile, **given: Any) -> tuple[Point, ...]:
    """`whole_front.whole_front`."""
    problem, call = _sorted(profile, 1.0, {"n_trials": N_TRIALS_OF_FRONT, **given})
    return whole_front.whole_front(problem, **call)


def answer(profile: Profile, budget: Budget, storage: Path) -> KnownPlan | None:
    """`whole_front.answer`."""
    return whole_front.answer(Problem.of(profile, budget), SearchSettings(storage=storage))


def _sorted(
    profile: Profile, budget: Budget | float, given: dict[str, Any]
) -> tuple[Problem, dict[str, Any]]:
    """The problem, and the other arguments of a call."""
    problem = Problem.of(profile, budget, **{k: given[k] for k in PROBLEM if k in given})
    call = {k: given[k] for k in CALL if k in given}
    rest = {k: v for k, v in given.items() if k not in (*PROBLEM, *CALL)}
    return problem, {**call, "settings": SearchSettings(**rest)}
