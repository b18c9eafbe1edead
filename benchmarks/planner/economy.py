"""How good the plan becomes with more samples, without labels, and with fewer probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import found, world
from benchmarks.planner.found import LABELLED, OWN, PREDICTED, Asked, Folders
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work, code
from benchmarks.planner.world import ADAPTIVE, FULL
from tpcal.planner.prediction.objective import Objective

Floats = NDArray[np.float64]
TARGET = 0.22
VARIANTS = ((FULL, LABELLED), (ADAPTIVE, LABELLED), (ADAPTIVE, OWN))
"""Probes and answers; the second is what `tpcal calibrate` does by default."""


@dataclass(frozen=True)
class Quality:
    """What a plan loses on questions of the test split."""

    mean: float
    """Nats per answer token, mean of all groups."""
    worst: float
    """The same of the worst group."""
    both: float
    """What a search minimises."""
    changed: float
    """Share of answers of which a token changes."""


def by_size(work: Work, sizes: Sizes, folders: Folders) -> Mapping[Asked, Quality]:
    """Plans from profiles of every size, searched and by prediction alone."""
    asked = [
        Asked(n, seed, TARGET, n_trials, probes=FULL)
        for n in sorted(sizes.economy, reverse=True)  # the longest first
        for seed in sizes.study_seeds
        for n_trials in (sizes.economy_trials, PREDICTED)
    ]
    return qualities(work, sizes, folders, asked, "plans by samples")


def by_variant(work: Work, sizes: Sizes, folders: Folders) -> Mapping[Asked, Quality]:
    """Plans from profiles of one size that differ in probes or answers."""
    n, trials = sizes.variants, sizes.economy_trials
    made = [(probes, answers == OWN) for probes, answers in VARIANTS if probes != FULL]
    calls = [(n, seed, folders.profiles, *how) for seed in sizes.study_seeds for how in made]
    work.each(world.calibrate, calls, "calibrations by variant")
    asked = [
        Asked(n, seed, TARGET, n_trials, answers, probes)
        for seed in sizes.study_seeds
        for probes, answers in VARIANTS
        for n_trials in (trials, PREDICTED)
    ]
    return qualities(work, sizes, folders, asked, "plans by variant")


def qualities(
    work: Work, sizes: Sizes, folders: Folders, asked: Sequence[Asked], title: str
) -> dict[Asked, Quality]:
    """What every plan that is asked for loses on questions no profile has seen."""
    planner = code("planner")
    plans = work.each(found.plan, [(a, folders, planner) for a in asked], title)
    where = (world.TEST, sizes.judged, 0)
    judged = work.each(world.losses, [(cuts, *where) for cuts in plans], f"{title}, judged")
    return {
        a: _quality(nats, changed, *where)
        for a, (nats, changed) in zip(asked, judged, strict=True)
    }


def _quality(
    nats: NDArray[np.float32], changed: NDArray[np.bool_], split: str, n: int, seed: int
) -> Quality:
    where = (split, n, seed)
    losses = world.by_group(nats, *where)
    groups = world.samples(*where).groups
    both = float(Objective().values(losses, groups))
    return Quality(float(losses.mean()), float(losses.max()), both, float(changed.mean()))
