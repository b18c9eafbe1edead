"""Distinct plans of one budget, good, middling and bad, to judge predictions on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.planner import world
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.optimum import Solver
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.budget_projection import MAX_CUTS, exact_keep
from tpcal.plans.plan_file import load_preset, presets
from tpcal.plans.plan_records import Cut, Cuts


@dataclass(frozen=True)
class Drawn:
    """A plan and where it comes from."""

    cuts: Cuts
    source: str


@dataclass(frozen=True)
class _Draw:
    predictors: Sequence[Predictor]
    """Of plans with one cut or more; the last one allows as many as a search does."""
    budget: Budget
    rng: np.random.Generator

    @property
    def predictor(self) -> Predictor:
        return self.predictors[-1]

    def random(self) -> Cuts:
        """Layers, keeps and selectors by chance, put on the budget."""
        limits, options = self.predictor.limits, self.predictor.options
        n_cuts = int(self.rng.integers(1, MAX_CUTS))
        layers = np.sort(self.rng.choice(limits.n_layers - 1, n_cuts, replace=False)).tolist()
        alive, cuts = 1.0, []
        for layer in layers:
            alive *= float(self.rng.uniform(0.1, 0.9))
            option = options[int(self.rng.integers(len(options)))]
            count = max(1, round(alive * limits.n_tokens))
            keep = exact_keep(count, limits.n_tokens)
            cuts.append(Cut(layer, keep, option.selector, option.params))
        if self.rng.random() < 0.5 and limits.first_drop is not None:
            lowest = max(layers[-1] + 1, limits.first_drop)
            cuts.append(Cut(int(self.rng.integers(lowest, limits.n_layers)), 0.0))
        return fill(self.predictor, cuts, self.budget)

    def optimal(self) -> Cuts:
        """The optimum of the prediction for random groups, with some of the selectors."""
        n = len(self.predictor.options)
        some = self.rng.choice(n, int(self.rng.integers(1, n + 1)), replace=False)
        predictor = self.predictors[int(self.rng.integers(MAX_CUTS))]
        solver = Solver(predictor, self.budget, tuple(some.tolist()))
        weights = self.rng.dirichlet(np.full(len(self.predictor.groups), 0.3))
        return fill(self.predictor, solver.optimum(weights), self.budget)

    def near(self) -> Cuts:
        """One step away from such an optimum."""
        around = neighbours(self.predictor, self.optimal(), self.budget)
        return around[int(self.rng.integers(len(around)))]


RANDOM, OPTIMUM, NEIGHBOUR = "random", "optimum", "neighbour"
TURNS = (RANDOM, OPTIMUM, RANDOM, NEIGHBOUR)
"""Half of the plans are drawn by chance; a quarter each are optima of the prediction and steps
away from one, so that good plans, between which a search has to choose, are well represented."""


def plans(
    target: float, n: int, n_profile: int, folder: Path, turns: Sequence[str] = TURNS
) -> list[Drawn]:
    """``n`` distinct plans of a layer average: published ones, then drawn in turns."""
    cuts = range(1, MAX_CUTS + 1)
    predictors = [world.predictor(n_profile, 0, folder, n) for n in cuts]
    predictor, budget = predictors[-1], Budget(target)
    draw = _Draw(predictors, budget, np.random.default_rng(round(target * 1000)))
    found: dict[Cuts, str] = {}
    for name in presets():
        if len(found) < n:
            published = load_preset(name, predictor.limits.n_layers).cuts
            found.setdefault(fill(predictor, published, budget), "published")
    made: dict[str, Callable[[], Cuts]] = {
        RANDOM: draw.random,
        OPTIMUM: draw.optimal,
        NEIGHBOUR: draw.near,
    }
    source = itertools.cycle(turns)
    while len(found) < n:
        now = next(source)
        found.setdefault(made[now](), now)
    return [Drawn(cuts, source) for cuts, source in found.items()]
