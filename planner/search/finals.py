"""The last rounds of a search, which measure the best plans again on further samples.

The best of many measured plans looks better than it is, because the samples that it is measured
on are those that it was chosen by. Further samples tell more.

Every round measures a further part of these samples, for ever fewer plans (successive halving).
So most of the work is spent on the few plans that are hard to tell apart.

Source:
    Karnin, Koren, Somekh, Almost optimal exploration in multi-armed bandits (ICML 2013). Here
    the rounds have a fixed number of plans, and what was measured before counts as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.objective import Objective
from tpcal.planner.search import ledger
from tpcal.planner.search.ledger import (
    GroupMeans,
    SampleGroups,
    cuts_of,
    fully_measured,
    means_of,
    rank,
)
from tpcal.planner.search.trials import Measurement, Measures
from tpcal.plans.progress import Progress

ROUNDS = (12, 6, 3)
"""Number of plans in each round. All rounds measure equal parts of the further samples, so the
model runs as often as for `N_WHOLE` plans on all of them. docs/planner.md has the measurement."""
N_WHOLE = sum(ROUNDS) / len(ROUNDS)
"""Number of plans that are as much work on all further samples."""


@dataclass(frozen=True)
class Final:
    """A finalist."""

    trial: FrozenTrial
    means: GroupMeans
    """On the further samples so far."""
    value: float
    """Objective over both sets of samples."""


def best_finalist(
    study: Study,
    measurer: Measures,
    finals: Measures,
    objective: Objective,
    progress: Progress | None = None,
) -> Final | None:
    """The winner; None if no plan was measured. What was measured before is not run again."""
    alive = sorted(fully_measured(study), key=rank)
    rounds = _Rounds(study, finals)
    total = sum(min(n, len(alive)) for n in ROUNDS)
    done, found = 0, list[Final]()
    for place, n_plans in enumerate(ROUNDS, start=1):
        n, found = math.ceil(len(finals.sample_group) * place / len(ROUNDS)), []
        for trial in alive[:n_plans]:
            if progress is not None:
                progress(done, total, "finalists")
            means, done = rounds.means(trial, n), done + 1
            found.append(Final(trial, means, _pooled(trial, means, measurer, objective)))
        found.sort(key=lambda final: (final.value, *rank(final.trial)))
        alive = [final.trial for final in found]
    return found[0] if found else None


def _pooled(
    trial: FrozenTrial, means: GroupMeans, measurer: Measures, objective: Objective
) -> float:
    """Objective over the samples of the search and the further ones."""
    before, after, more = means_of(trial).measured, means.measured, means.sizes
    pooled = {
        g: (before[g] * n + after.get(g, 0.0) * more.get(g, 0)) / (n + more.get(g, 0))
        for g, n in group_sizes(measurer).items()
    }
    return objective.of(pooled)


class _Rounds:
    """Measures plans on ever more of the further samples; the study keeps what was measured."""

    def __init__(self, study: Study, finals: Measures) -> None:
        self._study, self._finals = study, finals
        self._running: dict[int, Measurement] = {}

    def means(self, trial: FrozenTrial, n: int) -> GroupMeans:
        """What the plan of a trial loses on the first ``n`` samples."""
        means = ledger.final(self._study, trial, self._finals, n)
        if means is None:
            if trial.number not in self._running:
                self._running[trial.number] = Measurement(self._finals, cuts_of(trial))
            means = self._running[trial.number].means(n)
            ledger.write_final(self._study, trial, self._finals, n, means)
        return means


def measured_again(study: Study, trial: FrozenTrial, finals: Measures) -> GroupMeans:
    """What a trial's plan loses on all further samples, measured once for each study."""
    return _Rounds(study, finals).means(trial, len(finals.sample_group))


def completed(means: GroupMeans, before: GroupMeans) -> GroupMeans:
    """What a plan lost on further samples, and before in groups that have no further samples."""
    return GroupMeans(
        {**before.measured, **means.measured},
        {**before.flips, **means.flips},
        {**before.margins, **means.margins},
    )


def group_sizes(samples: SampleGroups) -> dict[str, int]:
    """Number of samples of each group."""
    own = np.asarray(samples.sample_group, dtype=np.int64)
    counts = np.bincount(own, minlength=len(samples.groups))
    return dict(zip(samples.groups, counts.tolist(), strict=True))
