"""Plans that look most worth measuring next, seen from those measured so far."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.conditions import dropping, share, useful
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.optimum import Solver
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search.correction import Correction, Cuts
from tpcal.planner.search.encoding import canonical
from tpcal.plans.selectors import parameters, searched

N_PARENTS = 4
N_OPTIMA = 4
HOPE = -0.7
"""Standard errors that an unknown plan is credited with."""


def proposals(
    predictor: Predictor,
    measured: Mapping[Cuts, float],
    known: Collection[Cuts],
    budget: Budget,
    max_cuts: int,
    rng: np.random.Generator,
) -> list[Cuts]:
    """New plans on the budget, the most promising first.

    Candidates are the steps from the best measured plans, their first cuts with another's last
    ones, and optima of the prediction for groups weighed at random. They are ranked by the
    corrected prediction, with some credit for what is not known (lower confidence bound).

    Args:
        predictor: Predicts and knows the limits.
        measured: Objective of all plans measured so far, for this budget or others.
        known: Plans that were tried on this budget.
        budget: What the plan may cost.
        max_cuts: Most cuts of a plan.
        rng: Draws the groups' weights.
    """
    correction = Correction(predictor, measured, predictor.prices.average(budget))
    here = [cuts for cuts in known if cuts in measured]
    parents = sorted(here, key=lambda cuts: measured[cuts])[:N_PARENTS]
    found: dict[Cuts, None] = {}
    for parent in parents:
        found |= dict.fromkeys(neighbours(predictor, parent, budget, max_cuts))
        found |= dict.fromkeys(_tuned(predictor, parent, budget))
        found |= dict.fromkeys(_conditioned(predictor, parent, budget))
    found |= dict.fromkeys(_crossed(predictor, parents, budget, max_cuts))
    found |= dict.fromkeys(_optima(predictor, budget, max_cuts, rng))
    plain = dict.fromkeys(tuple(map(canonical, cuts)) for cuts in found)
    fresh = [cuts for cuts in plain if cuts not in known]
    order = np.argsort(correction.scores(fresh, HOPE), kind="stable")
    return [fresh[i] for i in order]


def _tuned(predictor: Predictor, parent: Cuts, budget: Budget) -> list[Cuts]:
    """The plan with one parameter of one selector changed."""
    plans = []
    for i, cut in enumerate(parent):
        for name, values in searched(cut.selector).items() if cut.selector else ():
            now = cut.params.get(name, parameters(str(cut.selector))[name])
            for value in _steps(now, values):
                other = canonical(replace(cut, params={**cut.params, name: value}))
                plans.append(fill(predictor, [*parent[:i], other, *parent[i + 1 :]], budget))
    return plans


def _conditioned(predictor: Predictor, parent: Cuts, budget: Budget) -> list[Cuts]:
    """The plan with a last drop-all that fires for more samples, or for fewer."""
    if not parent or parent[-1].keep > 0 or not useful(predictor.profile):
        return []
    *rest, last = parent
    part = share(predictor.profile, last)
    wanted = {min(1.0, max(0.1, round(part + step, 2))) for step in (-0.4, -0.15, 0.15, 0.4)}
    drops = [dropping(predictor.profile, last.layer, w) for w in sorted(wanted)]
    return [fill(predictor, [*rest, drop], budget) for drop in drops if drop != last]


def _steps(now: Any, values: tuple[Any, ...]) -> list[Any]:
    """Other words, or numbers a quarter of the range away."""
    if isinstance(now, str):
        return [value for value in values if value != now]
    low, high = values
    step = max(1, (high - low) // 4) if isinstance(low, int) else (high - low) / 4
    return [round(v, 3) for v in (now - step, now + step) if low <= v <= high]


def _crossed(
    predictor: Predictor, parents: list[Cuts], budget: Budget, max_cuts: int
) -> list[Cuts]:
    plans = []
    for one in parents:
        for other in parents:
            for layer in {cut.layer for cut in other} - {0}:
                early = [cut for cut in one if cut.layer < layer]
                late = [cut for cut in other if cut.layer >= layer]
                if one is not other and early and len(early) + len(late) <= max_cuts:
                    plans.append(fill(predictor, [*early, *late], budget))
    return [cuts for cuts in plans if len(cuts) <= max_cuts]


def _optima(
    predictor: Predictor, budget: Budget, max_cuts: int, rng: np.random.Generator
) -> list[Cuts]:
    solver = Solver(predictor, budget, max_cuts)
    weights = rng.dirichlet(np.full(len(predictor.groups), 0.5), size=N_OPTIMA)
    return [fill(predictor, solver.optimum(w), budget) for w in weights]
