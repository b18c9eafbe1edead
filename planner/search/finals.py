"""The last round of a search, which measures the best plans again on further samples.

The best of many measured plans looks better than it is, because the samples that it is measured
on are those that it was chosen by. Further samples give an unbiased figure.
"""

from __future__ import annotations

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
from tpcal.planner.search.trials import Measures, measure_all
from tpcal.plans.progress import Progress

N_FINALISTS = 8


@dataclass(frozen=True)
class Final:
    """A finalist."""

    trial: FrozenTrial
    means: GroupMeans
    """On the further samples."""
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
    chosen = sorted(fully_measured(study), key=rank)[:N_FINALISTS]
    found = []
    for place, trial in enumerate(chosen):
        if progress is not None:
            progress(place, len(chosen), "finalists")
        found.append(_final(study, trial, measurer, finals, objective))
    return min(found, key=lambda f: (f.value, *rank(f.trial)), default=None)


def _final(
    study: Study, trial: FrozenTrial, measurer: Measures, finals: Measures, objective: Objective
) -> Final:
    means = measured_again(study, trial, finals)
    first, more = group_sizes(measurer), group_sizes(finals)
    before, after = means_of(trial).measured, means.measured
    pooled = {
        g: (before[g] * n + after.get(g, 0.0) * more.get(g, 0)) / (n + more.get(g, 0))
        for g, n in first.items()
    }
    return Final(trial, means, objective.of(pooled))


def measured_again(study: Study, trial: FrozenTrial, finals: Measures) -> GroupMeans:
    """What a trial's plan loses on further samples, which is measured once for each study."""
    means = ledger.final(study, trial)
    if means is None:
        means = measure_all(finals, cuts_of(trial))
        ledger.write_final(study, trial, means)
    return means


def group_sizes(samples: SampleGroups) -> dict[str, int]:
    """Number of samples of each group."""
    counts = np.bincount(np.asarray(samples.sample_group), minlength=len(samples.groups))
    return dict(zip(samples.groups, counts.tolist(), strict=True))
