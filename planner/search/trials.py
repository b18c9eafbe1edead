"""One trial of a search: a plan is measured sample by sample, until all are or it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray

from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.planner.search.ledger import (
    STOPPED,
    GroupMeans,
    SampleGroups,
    write_means,
    write_outcome,
)
from tpcal.planner.search.pruning import BestPruner
from tpcal.plans.errors import RunFailed
from tpcal.plans.plan_records import Cut

Floats = NDArray[np.float64]


class Measures(SampleGroups, Protocol):
    """Runs plans on calibration samples; `tpcal.calibrate.measure.Measurer` is one."""

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[ArrayLike, ArrayLike, ArrayLike]]:
        """Sample numbers, nats and changed answers of a plan, one batch after another."""


def measure(
    trial: optuna.Trial,
    measurer: Measures,
    cuts: Sequence[Cut],
    pruner: BestPruner,
    objective: Objective,
) -> float:
    """Objective of a plan; an estimate if the pruner stops the trial."""
    kl, flips = np.full((2, len(measurer.sample_group)), np.nan)
    for at in _fill(measurer, cuts, kl, flips):
        for sample in at.tolist():
            trial.report(float(kl[sample]), sample)
        if np.isnan(kl).any() and trial.should_prune():
            write_outcome(trial, STOPPED)
            seen = np.flatnonzero(~np.isnan(kl))
            return pruner.estimate(trial.study, {int(s): float(kl[s]) for s in seen})
    means = _group_means(measurer, kl, flips)
    write_means(trial, means)
    return objective.of(means.measured)


class Measurement:
    """Measures one plan on ever more samples, each of them once."""

    def __init__(self, measurer: Measures, cuts: Sequence[Cut]) -> None:
        self._measurer = measurer
        self._kl, self._flips = np.full((2, len(measurer.sample_group)), np.nan)
        self._batches = _fill(measurer, cuts, self._kl, self._flips)

    def means(self, n: int) -> GroupMeans:
        """What the plan loses on the first ``n`` samples, whose last batch counts as a whole.

        A sample counts with `MOST` nats at most, and groups without samples are left out.
        """
        while np.isfinite(self._kl).sum() < n:
            next(self._batches)
        own = np.asarray(self._measurer.sample_group)[np.isfinite(self._kl)].tolist()
        sizes = {g: own.count(i) for i, g in enumerate(self._measurer.groups) if i in own}
        return replace(_group_means(self._measurer, self._kl, self._flips), sizes=sizes)


def measure_all(measurer: Measures, cuts: Sequence[Cut]) -> GroupMeans:
    """What a plan loses on all samples, each counted with `MOST` nats at most."""
    return Measurement(measurer, cuts).means(len(measurer.sample_group))


def limited(losses: ArrayLike) -> Floats:
    """[n] losses as all of planning counts them, between 0 and `MOST` nats."""
    # Float32 sums of a KL can end a little below 0, and the pruner's bound relies on >= 0.
    return np.clip(np.asarray(losses, dtype=np.float64), 0.0, MOST)


def _group_means(measurer: Measures, kl: Floats, flips: Floats) -> GroupMeans:
    """Means and margins of [n] values for each group, without samples that are nan."""
    losses, changed, margins = dict[str, float](), dict[str, float](), dict[str, float]()
    own = np.where(np.isfinite(kl), measurer.sample_group, -1)
    for i, group in enumerate(measurer.groups):
        mine = kl[own == i]
        if len(mine):
            losses[group] = float(mine.mean())
            changed[group] = float(flips[own == i].mean())
            margins[group] = margin_of(mine)
    return GroupMeans(losses, changed, margins)


def margin_of(values: Floats) -> float:
    """Half the width of an approximate 95 % interval of the mean of [n] losses."""
    from scipy.special import stdtrit

    # Student's interval, with one more sample that is lost entirely. Most groups lose little but
    # for single samples, which few samples do not show, and without this one the interval of a
    # group held its mean in 57 % of all cases instead of 99 %.
    known = np.append(values, MOST)
    n = len(known)
    return min(float(stdtrit(n - 1, 0.975) * known.std(ddof=1) / np.sqrt(n)), MOST)


def _fill(
    measurer: Measures, cuts: Sequence[Cut], kl: Floats, flips: Floats
) -> Iterator[NDArray[np.int64]]:
    """Fills in the results batch by batch and yields the samples of each."""
    for samples, losses, flipped in measurer.losses(cuts):
        at = np.asarray(samples, dtype=np.int64)
        kl[at] = limited(losses)
        flips[at] = np.asarray(flipped, dtype=np.float64)
        if not np.isfinite(kl[at]).all():
            raise RunFailed(
                "The losses of a plan must be numbers; got nan. Use --dtype float32 or bfloat16."
            )
        yield at
