"""The plan that tpcal finds, from samples to cuts, as `tpcal calibrate` and `tpcal plan` do it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from benchmarks.planner import world
from benchmarks.planner.world import ADAPTIVE, FULL
from tpcal.calibrate.measure import Measurer, n_of_finals
from tpcal.calibrate.profile import Profile
from tpcal.planner.problem import Problem
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.settings import SearchSettings
from tpcal.plans.plan_records import Cut

LABELLED, OWN = "labelled", "own answers"
PREDICTED = 0
"""Trials of a plan that is chosen by prediction alone."""


@dataclass(frozen=True)
class Asked:
    """What a plan is found from."""

    n: int
    """Samples of the profile; plans are measured on twice as many."""
    seed: int
    """Seed of the samples and of the search."""
    target: float
    n_trials: int
    answers: str = LABELLED
    probes: str = ADAPTIVE


@dataclass(frozen=True)
class Folders:
    """Where profiles and searches are kept, so that they continue."""

    n_calibrated: int
    """Samples of the calibrations that smaller profiles are cut from."""
    profiles: Path
    searches: Path


def plan(asked: Asked, folders: Folders, planner: str) -> tuple[Cut, ...]:
    """The cuts of the plan found.

    Args:
        asked: What it is found from.
        folders: Where profiles and searches are kept.
        planner: Hash of the planner's code; another one searches anew.
    """
    profile = profile_of(asked, folders)
    problem = Problem.of(profile, asked.target)
    if asked.n_trials == PREDICTED:
        return search(problem).plan.cuts
    measurer, finals = measurers(asked.n, asked.seed, asked.answers == OWN)
    which = asked.target, asked.n, asked.seed, asked.n_trials, asked.answers, asked.probes
    name = "-".join(map(str, (planner, *which)))
    storage = folders.searches / f"{name}.journal"
    settings = SearchSettings(asked.n_trials, seed=asked.seed, storage=storage)
    return search(problem, measurer=measurer, finals=finals, settings=settings).plan.cuts


@lru_cache(maxsize=1)
def measurers(n: int, seed: int, own: bool) -> tuple[Measurer, Measurer | None]:
    """For the search, the profile's samples; further ones for its finalists."""
    total = n + n_of_finals(n, None)
    drawn = world.samples(world.CALIBRATION, total, seed, own)
    first, further = drawn.part(0, n), drawn.part(n, total)
    made = partial(
        Measurer, world.model(), batch_size=world.batch_size(), like=world.measured.like
    )
    return made(first), made(further) if first.groups == further.groups else None


def profile_of(asked: Asked, folders: Folders) -> Profile:
    """Calibrated as asked; with all probes and labels, cut from the large one of its seed."""
    own = asked.answers == OWN
    if asked.probes == FULL and not own:
        return world.first(
            world.calibrated(folders.n_calibrated, asked.seed, folders.profiles), asked.n
        )
    return world.calibrated(asked.n, asked.seed, folders.profiles, asked.probes, own)
