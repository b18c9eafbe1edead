"""What each part of a search is worth: the same search without it, judged on other samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from joblib import Memory
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.remembered import Remembered
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from benchmarks.planner.work import Work, code
from tpcal.calibrate.measure import n_of_finals
from tpcal.planner.problem import Problem
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.settings import SearchSettings
from tpcal.plans.plan_records import Cut

BUDGETS = (0.10, 0.22)
WHOLE = "nothing"
_SEARCH = "tpcal.planner.search"
Without = Callable[[], AbstractContextManager[Any]]


def _none(*_: Any) -> list[Any]:
    return []


WITHOUT: Mapping[str, Without] = {
    WHOLE: nullcontext,
    "neighbours": lambda: patch(f"{_SEARCH}.proposals.neighbours", _none),
    "other parameters of a selector": lambda: patch(f"{_SEARCH}.proposals._tuned", _none),
    "all proposals": lambda: patch(f"{_SEARCH}.run.proposals", _none),
    "the sampler": lambda: patch(f"{_SEARCH}.run.SAMPLED_EVERY", math.inf),
}
"""How to run a search without one of its parts, by the name of the part."""


@dataclass(frozen=True)
class Ablated:
    """One search without one part."""

    seed: int
    target: float
    without: str


@dataclass(frozen=True)
class Judged:
    """The plan of a search."""

    cuts: tuple[Cut, ...]
    losses: NDArray[np.float32]
    """[n] nats on samples that it has not seen."""
    texts: tuple[str, ...]
    """Answers to the questions of the test split."""


def judge(run: Ablated, sizes: Sizes, profiles: Path, memory: Path, planner: str) -> Judged:
    """The plan that the search finds without the part, and what it loses.

    Args:
        run: What is run.
        sizes: Numbers of samples and trials.
        profiles: Folder of the profiles.
        memory: Folder that keeps the losses of plans.
        planner: Hash of the planner's code.
    """
    kept = Memory(memory, verbose=0)
    n = sizes.variants
    profile = world.calibrated(n, run.seed, profiles, world.ADAPTIVE)
    measurer = Remembered(kept.cache(world.losses), n, run.seed)
    finals = Remembered(kept.cache(world.losses), n_of_finals(n, None), run.seed, n)
    problem = Problem.of(profile, run.target)
    settings = SearchSettings(sizes.trials, seed=run.seed)
    with WITHOUT[run.without]():
        cuts = search(problem, measurer=measurer, finals=finals, settings=settings).plan.cuts
    other = (world.CALIBRATION, sizes.judged, run.seed + ELSEWHERE)
    losses, _ = kept.cache(world.losses)(cuts, *other)
    texts = kept.cache(world.answers)(cuts, sizes.held_out, world.measured.merge)
    return Judged(cuts, losses, texts)


def judged(work: Work, sizes: Sizes, profiles: Path) -> dict[Ablated, Judged]:
    """Every search without every part."""
    calls = [(sizes.variants, seed, profiles, world.ADAPTIVE) for seed in sizes.study_seeds]
    work.each(world.calibrate, calls, "calibrations")
    runs = [Ablated(*given) for given in product(sizes.study_seeds, BUDGETS, WITHOUT)]
    rest = sizes, profiles, work.folder, code("planner")
    found = work.each(judge, [(run, *rest) for run in runs], "searches without a part")
    return dict(zip(runs, found, strict=True))
