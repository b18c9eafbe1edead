"""Plans to measure next, ranked by the prediction as corrected by the plans measured so far."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tpcal.planner.prediction.conditions import dropping, share, useful
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.optimum import Solver
from tpcal.planner.problem import Problem
from tpcal.planner.search.correction import Correction, Cuts
from tpcal.planner.search.encoding import canonical
from tpcal.plans.selectors import parameters, searched

N_PARENTS = 4
N_OPTIMA = 4
HOPE = -0.7
"""Standard errors added to the logarithm of a score; below 0, uncertain plans rank higher."""


def proposals(
    problem: Problem,
    measured: Mapping[Cuts, float],
    known: Collection[Cuts],
    rng: np.random.Generator,
) -> list[Cuts]:
    """New plans on the budget, the most promising first.

    Candidates are neighbours of the best measured plans, crossings of two of them, and optima of
    the prediction under random weights of the groups. Their rank is the lower confidence bound
    of the corrected prediction: predicted * exp(mean + `HOPE` * error).

    Args:
        problem: Predicts and knows the limits.
        measured: Objective of all plans measured so far, for this budget or others.
        known: Plans that were tried on this budget.
        rng: Draws the groups' weights.
    """
    predictor, budget, max_cuts = problem.predictor, problem.budget, problem.max_cuts
    correction = Correction(predictor, measured, predictor.prices.average(budget))
    # Step 1: the parents are the best plans measured on this budget.
    here = [cuts for cuts in known if cuts in measured]
    parents = sorted(here, key=lambda cuts: measured[cuts])[:N_PARENTS]
    # Step 2: candidates, in a dict because it keeps their order and drops repeats.
    found: dict[Cuts, None] = {}
    for parent in parents:
        found |= dict.fromkeys(neighbours(predictor, parent, budget, max_cuts))
        found |= dict.fromkeys(_tuned(problem, parent))
        found |= dict.fromkeys(_conditioned(problem, parent))
    found |= dict.fromkeys(_crossed(problem, parents))
    found |= dict.fromkeys(_optima(problem, rng))
    # Step 3: candidates are written as trials write them, so that known ones are recognised.
    plain = dict.fromkeys(tuple(map(canonical, cuts)) for cuts in found)
    fresh = [cuts for cuts in plain if cuts not in known]
    # Step 4: the smallest lower confidence bound comes first; a stable sort repeats itself.
    order = np.argsort(correction.scores(fresh, HOPE), kind="stable")
    return [fresh[i] for i in order]


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


def _conditioned(problem: Problem, parent: Cuts) -> list[Cuts]:
    """Plans whose final drop-all fires for more or for fewer samples."""
    profile = problem.profile
    if not parent or parent[-1].keep > 0 or not useful(profile):
        return []
    *rest, last = parent
    part = share(profile, last)
    wanted = {min(1.0, max(0.1, round(part + step, 2))) for step in (-0.4, -0.15, 0.15, 0.4)}
    drops = [dropping(profile, last.layer, w) for w in sorted(wanted)]
    plans = [[*rest, drop] for drop in drops if drop != last]
    return [fill(problem.predictor, cuts, problem.budget) for cuts in plans]


def _steps(now: Any, values: tuple[Any, ...]) -> list[Any]:
    """All other words of a choice, or the two numbers a quarter of the range away."""
    if isinstance(now, str):
        return [value for value in values if value != now]
    low, high = values
    step = max(1, (high - low) // 4) if isinstance(low, int) else (high - low) / 4
    return [round(v, 3) for v in (now - step, now + step) if low <= v <= high]


def _crossed(problem: Problem, parents: list[Cuts]) -> list[Cuts]:
    plans, max_cuts = [], problem.max_cuts
    # The cuts of one parent above a layer, followed by the cuts of another parent from it on.
    for one in parents:
        for other in parents:
            for layer in {cut.layer for cut in other} - {0}:
                early = [cut for cut in one if cut.layer < layer]
                late = [cut for cut in other if cut.layer >= layer]
                if one is not other and early and len(early) + len(late) <= max_cuts:
                    plans.append(fill(problem.predictor, [*early, *late], problem.budget))
    return [cuts for cuts in plans if len(cuts) <= max_cuts]


def _optima(problem: Problem, rng: np.random.Generator) -> list[Cuts]:
    solver = Solver(problem.predictor, problem.budget, problem.max_cuts)
    # Dirichlet(1/2) weights lie near the corners: often one or two groups decide an optimum.
    weights = rng.dirichlet(np.full(len(problem.predictor.groups), 0.5), size=N_OPTIMA)
    return [fill(problem.predictor, solver.optimum(w), problem.budget) for w in weights]
