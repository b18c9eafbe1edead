"""The plan that tpcal finds, from samples to cuts, as `tpcal calibrate` and `tpcal plan` do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna

from benchmarks.planner import world
from benchmarks.planner.sizes import MAX_CUTS
from tpcal.calibrate.measure import n_to_measure
from tpcal.calibrate.profile import Profile
from tpcal.planner.search import search
from tpcal.plans.schema import Cut

LABELLED, OWN = "labelled", "own answers"
FULL, ADAPTIVE = "full", "adaptive"
PREDICTED = 0
"""Trials of a plan that is chosen by prediction alone."""


@dataclass(frozen=True)
class Asked:
    """What a plan is found from."""

    n: int
    """Samples of the profile; plans are measured on twice as many."""
    seed: int
    """Of the samples and of the search."""
    target: float
    n_trials: int
    answers: str = LABELLED
    probes: str = FULL


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
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    profile = profile_of(asked, folders)
    if asked.n_trials == PREDICTED:
        return search(profile, asked.target, max_cuts=MAX_CUTS).plan.cuts
    own = asked.answers == OWN
    measurer = world.measurer(world.CALIBRATION, n_to_measure(asked.n, None), asked.seed, own)
    name = f"{planner}-{asked.target}-{asked.n}-{asked.seed}-{asked.answers}-{asked.probes}"
    return search(
        profile,
        asked.target,
        measurer=measurer,
        n_trials=asked.n_trials,
        seed=asked.seed,
        max_cuts=MAX_CUTS,
        storage=folders.searches / f"{name}.journal",
    ).plan.cuts


def profile_of(asked: Asked, folders: Folders) -> Profile:
    """Cut from the large calibration of its seed, or calibrated where that is another kind."""
    if asked.answers == LABELLED and asked.probes == FULL:
        whole = world.calibrated(folders.n_calibrated, asked.seed, folders.profiles)
        return world.first(whole, asked.n)
    own = asked.answers == OWN
    return world.calibrated(asked.n, asked.seed, folders.profiles, own)
