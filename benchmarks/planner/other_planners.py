"""Plans that other planners find on the samples of tpcal, and what finding them costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import found, world
from benchmarks.planner.comparison import OURS
from benchmarks.planner.found import Asked, Folders
from benchmarks.planner.rivals import fitprune, greedy, sigmoid, stages
from benchmarks.planner.rivals.schedule import Calibration, Planner, cuts_of
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from benchmarks.planner.work import Work, code
from tpcal.calibrate.measure import n_of_finals
from tpcal.planner.prediction.next_probes import work as probe_work
from tpcal.planner.search.finals import ROUNDS
from tpcal.plans.plan_records import Cut

BUDGETS = (0.22, 0.35)
"""At 0.10, one layer with all tokens is more than the budget of the 8 layers allows."""
PLANNERS: Mapping[str, Planner] = {
    "FitPrune": fitprune.plan,
    "P-Sigmoid": sigmoid.plan,
    "VFlowOpt": stages.plan,
    "GSOP": greedy.plan,
}


@dataclass(frozen=True)
class Run:
    """One planner with one seed at one budget."""

    planner: str
    target: float
    seed: int


@dataclass(frozen=True)
class Judged:
    """The plan of a run."""

    cuts: tuple[Cut, ...]
    passes: float
    """Work of finding it, in passes (`rivals.schedule`)."""
    losses: NDArray[np.float32]
    """[n] nats on samples that no planner has seen."""
    texts: tuple[str, ...]
    """Answers to the questions of the test split."""


def judge(run: Run, sizes: Sizes, folders: Folders, planner: str) -> Judged:
    """The plan that a planner finds, and what it loses.

    Args:
        run: The planner, budget and seed.
        sizes: Numbers of samples.
        folders: Where profiles and searches are kept.
        planner: Hash of the planners' code; another one searches anew.
    """
    if run.planner == OURS:
        asked = Asked(sizes.variants, run.seed, run.target, sizes.trials)
        cuts = found.plan(asked, folders, planner)
        passes = _passes(asked, folders)
    else:
        given = Calibration(sizes.variants, run.seed, run.target)
        cuts = cuts_of(PLANNERS[run.planner](given), given.n_tokens)
        passes = given.passes
    losses, _ = world.losses(cuts, world.CALIBRATION, sizes.judged, run.seed + ELSEWHERE)
    return Judged(cuts, passes, losses, world.answers(cuts, sizes.held_out))


def _passes(asked: Asked, folders: Folders) -> float:
    """At most the work of calibration and search: no plan is stopped early, finals included."""
    profile = found.profile_of(asked, folders)
    probes = 1 + sum(probe_work(profile, profile.probes)) / profile.shape.n_layers
    n_final = sum(ROUNDS) / len(ROUNDS) * n_of_finals(asked.n, None)
    return asked.n * probes + (asked.n_trials * asked.n + n_final) * asked.target


def judged(work: Work, sizes: Sizes, folders: Folders) -> dict[Run, Judged]:
    """Every planner at every budget with every seed."""
    calls = [(sizes.variants, seed, folders.profiles, world.ADAPTIVE) for seed in sizes.seeds]
    work.each(world.calibrate, calls, "calibrations")
    runs = [Run(*given) for given in product((OURS, *PLANNERS), BUDGETS, sizes.seeds)]
    rest = sizes, folders, code("planner", "benchmarks/planner/rivals")
    results = work.each(judge, [(run, *rest) for run in runs], "other planners")
    return dict(zip(runs, results, strict=True))
