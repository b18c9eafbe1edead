"""Plans that other planners find on the samples of tpcal, and what finding them costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray

from benchmarks.planner import found, world
from benchmarks.planner.comparison import OURS
from benchmarks.planner.found import Asked, Folders
from benchmarks.planner.rivals import autoprune, fitprune, greedy, sigmoid, stages, vispco
from benchmarks.planner.rivals.schedule import (
    ATTENTION,
    CONTENT,
    Adaptive,
    AdaptivePlanner,
    Calibration,
    Chooser,
    Planner,
)
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from benchmarks.planner.work import Call, NotMeasured, Work, code
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.measure import n_of_finals
from tpcal.planner.prediction.next_probes import work as probe_work
from tpcal.planner.search.finals import N_WHOLE
from tpcal.plans.plan_records import Cuts

BUDGETS = (0.22, 0.35)
"""At 0.10, one layer with all tokens is more than the budget of the 8 layers allows."""
METHODS: Mapping[str, Planner | AdaptivePlanner] = {
    "FitPrune": fitprune.plan,
    "P-Sigmoid": sigmoid.plan,
    "VFlowOpt": stages.plan,
    "GSOP": greedy.plan,
    "AutoPrune": autoprune.plan,
    "VisPCO": vispco.plan,
}
"""Published methods, with the attention that they rank tokens by."""
WITH_CONTENT = tuple(name for name in METHODS if name != "VisPCO")
"""Methods that are tried with a selector of tpcal, too, which tells what a planner is worth from
what a selector is worth. The gradient of VisPCO needs ranks by attention."""
PLANNERS: Mapping[str, tuple[Planner | AdaptivePlanner, str]] = {
    **{name: (method, ATTENTION) for name, method in METHODS.items()},
    **{f"{name} with {CONTENT}": (METHODS[name], CONTENT) for name in WITH_CONTENT},
}
"""By their names in the table, with the selector of their cuts."""
LONGEST_FIRST = ("GSOP", OURS, "VisPCO", "VFlowOpt", "AutoPrune", "P-Sigmoid", "FitPrune")
"""With any selector."""


@dataclass(frozen=True)
class Run:
    """One planner with one seed at one budget."""

    planner: str
    target: float
    seed: int


@dataclass(frozen=True)
class Judged:
    """The plan of a run."""

    plans: tuple[Cuts, ...]
    """The cuts of the plan, or of all plans of a planner that chooses one for each sample."""
    passes: float
    """Work of finding it, in passes (`rivals.schedule`)."""
    losses: NDArray[np.float32]
    """[n] nats on samples that no planner has seen."""
    texts: tuple[str, ...]
    """Answers to the questions of the test split."""


@dataclass(frozen=True)
class Pieces:
    """The runs of one call, so that all can be measured in several calls; empty means all."""

    budgets: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    planners: tuple[str, ...] = ()

    def has(self, run: Run) -> bool:
        """Whether the call measures this run."""
        asked = ((self.budgets, run.target), (self.seeds, run.seed), (self.planners, run.planner))
        return all(not some or value in some for some, value in asked)


def judge(run: Run, sizes: Sizes, folders: Folders, memory: Path, planner: str) -> Judged:
    """The plan that a planner finds, and what it loses.

    Args:
        run: The planner, budget and seed.
        sizes: Numbers of samples.
        folders: Where profiles and searches are kept.
        memory: Folder that keeps the losses of plans, with which a stopped planner continues.
        planner: Hash of the planners' code; another one searches anew.
    """
    if run.planner == OURS:
        asked = Asked(sizes.variants, run.seed, run.target, sizes.trials)
        plans: tuple[Cuts, ...] = (found.plan(asked, folders, planner),)
        choose: Chooser = same_for_all
        passes = _passes(asked, folders)
    else:
        find, selector = PLANNERS[run.planner]
        losses = Memory(memory, verbose=0).cache(world.losses)
        given = Calibration(sizes.variants, run.seed, run.target, selector, losses=losses)
        made = find(given)
        made = made if isinstance(made, Adaptive) else Adaptive((made,), same_for_all)
        plans, choose = tuple(map(given.cuts, made.schedules)), made.choose
        passes = given.passes
    merge = world.measured.merge
    split, seed = world.CALIBRATION, run.seed + ELSEWHERE
    chosen = choose(world.samples(split, sizes.judged, seed))
    nats = of_chosen(lambda cuts: world.losses(cuts, split, sizes.judged, seed)[0], plans, chosen)
    chosen = choose(world.samples(world.TEST, sizes.held_out, 0))
    texts = of_chosen(lambda cuts: world.answers(cuts, sizes.held_out, merge), plans, chosen)
    return Judged(plans, passes, np.array(nats, np.float32), tuple(texts))


def same_for_all(samples: Samples) -> NDArray[np.intp]:
    """[n] the first plan for every sample."""
    return np.zeros(len(samples), np.intp)


def of_chosen(
    measure: Callable[[Cuts], Any], plans: Sequence[Cuts], chosen: NDArray[np.intp]
) -> list[Any]:
    """[n] what every sample has under its own plan; a plan that no sample has is not measured.

    Args:
        measure: Returns the [n] values of all samples under a plan.
        plans: The plans.
        chosen: [n] index of each sample's plan.
    """
    own = chosen.tolist()
    values = {i: measure(plans[i]) for i in sorted(set(own))}
    return [values[i][at] for at, i in enumerate(own)]


def _passes(asked: Asked, folders: Folders) -> float:
    """At most the work of calibration and search: no plan is stopped early, finals included.

    The search records its samples and those of the finals unpruned once more.
    """
    profile = found.profile_of(asked, folders)
    probes = 1 + sum(probe_work(profile, profile.probes)) / profile.shape.n_layers
    further = n_of_finals(asked.n, None)
    plans = (asked.n_trials * asked.n + N_WHOLE * further) * asked.target
    return asked.n * probes + asked.n + further + plans


def all_runs(sizes: Sizes) -> list[Run]:
    """Every planner at every budget with every seed."""
    return [Run(*given) for given in product((OURS, *PLANNERS), BUDGETS, sizes.study_seeds)]


def calibrations(
    sizes: Sizes, folders: Folders, pieces: Pieces
) -> list[tuple[int, int, Path, str]]:
    """The profiles that the pieces need."""
    seeds = dict.fromkeys(run.seed for run in all_runs(sizes) if pieces.has(run))
    return [(sizes.variants, seed, folders.profiles, world.ADAPTIVE) for seed in seeds]


def judged(work: Work, sizes: Sizes, folders: Folders, pieces: Pieces) -> dict[Run, Judged]:
    """Measures the pieces; returns them and what earlier calls have measured."""
    if not work.only_kept:
        work.each(world.calibrate, calibrations(sizes, folders, pieces), "calibrations")
        work.together(searches(work, sizes, folders, pieces), "other planners")
    calls = _calls(work, sizes, folders)
    known = {run: call for run, call in calls.items() if work.knows(judge, call)}
    if not known:
        raise NotMeasured("no other planner is measured")
    return {run: work.kept(judge)(*call) for run, call in known.items()}


def searches(work: Work, sizes: Sizes, folders: Folders, pieces: Pieces) -> list[Call]:
    """The runs of the pieces, the longest first so that no process waits for one at the end."""
    calls = _calls(work, sizes, folders)
    asked = [run for run in calls if pieces.has(run)]
    asked.sort(key=lambda run: place(run.planner))
    return [(judge, calls[run]) for run in asked]


def place(planner: str) -> int:
    """Place of a planner among all, the one that takes longest first, whatever its selector."""
    return LONGEST_FIRST.index(planner.partition(" with ")[0])


def _calls(work: Work, sizes: Sizes, folders: Folders) -> dict[Run, tuple[Any, ...]]:
    """The arguments of `judge` for every run."""
    rest = sizes, folders, work.folder, code("planner", "benchmarks/planner/rivals")
    return {run: (run, *rest) for run in all_runs(sizes)}
