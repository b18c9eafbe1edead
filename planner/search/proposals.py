"""Plans to measure next: steps from the best measured plans, ranked by the prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.problem import Problem
from tpcal.planner.search.encoding import canonical
from tpcal.plans.plan_records import Cuts
from tpcal.plans.selectors import parameters, searched

N_PARENTS = 4


def proposals(
    problem: Problem, measured: Mapping[Cuts, float], known: Collection[Cuts]
) -> list[Cuts]:
    """New plans on the budget, the one to measure next first.

    Candidates are neighbours of the best measured plans, and the same plans with one other
    parameter of one selector. The best plans take turns, so that one whose losses are small by
    chance does not have all the steps. Those from one plan are ranked by the prediction.

    Args:
        problem: Predicts and knows the limits.
        measured: Objective of plans measured on this budget.
        known: Plans that were tried on this budget.
    """
    # Step 1: the parents are the best plans measured on this budget; whose turn it is depends on
    # how many plans were tried, so that a search that continues goes on in the same order.
    parents = sorted(measured, key=lambda cuts: measured[cuts])[:N_PARENTS]
    turn = len(known) % max(1, len(parents))
    # Step 2: the dict keeps the order and drops repeats.
    found: dict[Cuts, None] = {}
    for parent in (*parents[turn:], *parents[:turn]):
        found |= dict.fromkeys(steps_from(problem, parent))
    return [cuts for cuts in found if cuts not in known]


@lru_cache(maxsize=2 * N_PARENTS)  # parents stay the same for many proposals
def steps_from(problem: Problem, parent: Cuts) -> list[Cuts]:
    """Every plan that is a step away, as trials write plans, the smallest prediction first."""
    near = neighbours(problem.predictor, parent, problem.budget)
    plans = [tuple(map(canonical, cuts)) for cuts in (*near, *_tuned(problem, parent))]
    return sorted(dict.fromkeys(plans), key=problem.predictor.score)


def _tuned(problem: Problem, parent: Cuts) -> list[Cuts]:
    """Plans that change one parameter of one selector."""
    plans = []
    for i, cut in enumerate(parent):
        for name, values in searched(cut.selector).items() if cut.selector else ():
            now = cut.params.get(name, parameters(str(cut.selector))[name])
            for value in _steps(now, values):
                other = canonical(replace(cut, params={**cut.params, name: value}))
                cuts = [*parent[:i], other, *parent[i + 1 :]]
                plans.append(fill(problem.predictor, cuts, problem.budget))
    return plans


def _steps(now: Any, values: tuple[Any, ...]) -> list[Any]:
    """All other words of a choice, or the two numbers a quarter of the range away."""
    if isinstance(now, str):
        return [value for value in values if value != now]
    low, high = values
    step = max(1, (high - low) // 4) if isinstance(low, int) else (high - low) / 4
    return [round(v, 3) for v in (now - step, now + step) if low <= v <= high]
