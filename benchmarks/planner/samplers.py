"""Which sampler finds good plans soonest, alone and beside the seeds and proposals of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from joblib import Memory
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.remembered import Remembered
from benchmarks.planner.sizes import ELSEWHERE, MAX_CUTS, Sizes
from benchmarks.planner.work import Work, code
from tpcal.planner.problem import Problem
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.samplers import SAMPLERS
from tpcal.planner.search.settings import SearchSettings

Floats = NDArray[np.float64]
TARGET = 0.22
ALONE, GUIDED = "alone", "guided"


@dataclass(frozen=True)
class Race:
    """One search with one sampler."""

    sampler: str
    how: str
    seed: int


def race(
    run: Race, n_trials: int, n: int, profile: tuple[int, Path], memory: Path, planner: str
) -> list[float]:
    """The objective of every plan measured, in order.

    Args:
        run: What is run.
        n_trials: Plans to measure.
        n: Samples to measure them on.
        profile: Its samples and the folder of profiles.
        memory: Where losses are kept.
        planner: Hash of the planner's code.
    """
    kept = Memory(memory, verbose=0).cache(world.losses)
    measures = Remembered(kept, n, ELSEWHERE)
    problem = Problem.of(world.predictor(profile[0], 0, profile[1]).profile, TARGET, MAX_CUTS)
    settings = SearchSettings(
        n_trials, seed=run.seed, sampler=run.sampler, propose=run.how == GUIDED
    )
    search(problem, measurer=measures, settings=settings)
    return list(measures.order.values())[:n_trials]


def races(work: Work, sizes: Sizes, profiles: Path) -> dict[Race, Floats]:
    """[trials] the best objective so far, of every race."""
    runs = [
        Race(sampler, how, seed)
        for how, seed, sampler in product((GUIDED, ALONE), sizes.sampler_seeds, SAMPLERS)
    ]
    rest = (
        *(sizes.sampler_trials, sizes.sampler_samples),
        *((sizes.profile, profiles), work.folder, code("planner")),
    )
    found = work.each(race, [(run, *rest) for run in runs], "searches by sampler")
    return {
        run: _so_far(values, sizes.sampler_trials) for run, values in zip(runs, found, strict=True)
    }


def _so_far(values: Sequence[float], n_trials: int) -> Floats:
    best = np.minimum.accumulate(np.asarray(values, dtype=np.float64))
    return np.pad(best, (0, n_trials - len(best)), mode="edge")
