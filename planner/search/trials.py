"""One trial of a search: a plan is measured sample by sample, until all are or it is stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    means = GroupMeans(_group_means(measurer, kl), _group_means(measurer, flips))
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
        losses, flips = (_group_means(self._measurer, v) for v in (self._kl, self._flips))
        return GroupMeans(losses, flips, sizes)


def measure_all(measurer: Measures, cuts: Sequence[Cut]) -> GroupMeans:
    """What a plan loses on all samples, each counted with `MOST` nats at most."""
    return Measurement(measurer, cuts).means(len(measurer.sample_group))


def _group_means(measurer: Measures, values: Floats) -> dict[str, float]:
    """Mean of [n] values for each group, without those that are nan."""
    own, known = np.asarray(measurer.sample_group), np.isfinite(values)
    means = {}
    for i, group in enumerate(measurer.groups):
        mine = values[known & (own == i)]
        if len(mine):
            means[group] = float(mine.mean())
    return means


def _fill(
    measurer: Measures, cuts: Sequence[Cut], kl: Floats, flips: Floats
) -> Iterator[NDArray[np.int64]]:
    """Fills in the results batch by batch and yields the samples of each."""
    for samples, losses, flipped in measurer.losses(cuts):
        at = np.asarray(samples, dtype=np.int64)
        # Float32 sums of a KL can end a little below 0, and the pruner's bound relies on >= 0.
        kl[at] = np.clip(np.asarray(losses, dtype=np.float64), 0.0, MOST)
        flips[at] = np.asarray(flipped, dtype=np.float64)
        if not np.isfinite(kl[at]).all():
            raise RunFailed(
                "The losses of a plan must be numbers; got nan. Use --dtype float32 or bfloat16."
            )
        yield at
