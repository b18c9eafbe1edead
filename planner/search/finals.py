"""The last round of a search: its best plans measured again, on samples it did not choose by.

The best of many measured plans looks better than it is, because it is chosen by the same samples
that it is measured on. Further samples tell the finalists apart, and give an honest figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.objective import Objective
from tpcal.planner.search.study import fully_measured
from tpcal.planner.search.trials import Measures, cuts_of, group_means, measure_all, rank

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

N_FINALISTS = 8
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Final:
    """A finalist."""

    trial: FrozenTrial
    measured: Mapping[str, float]
    """Nats per group on the further samples."""
    flips: Mapping[str, float]
    value: float
    """Objective over both sets of samples."""


def play(
    study: Study,
    measurer: Measures,
    finals: Measures,
    objective: Objective,
    progress: Progress | None = None,
) -> Final | None:
    """The winner; None where no plan was measured. What was measured before is not run again."""
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
    kept = again(study, trial, finals)
    first, more = sizes(measurer), sizes(finals)
    before = trial.user_attrs["measured"]
    pooled = {
        g: (before[g] * n + kept["measured"].get(g, 0.0) * more.get(g, 0)) / (n + more.get(g, 0))
        for g, n in first.items()
    }
    return Final(trial, kept["measured"], kept["flips"], objective.of(pooled))


def again(study: Study, trial: FrozenTrial, finals: Measures) -> dict[str, dict[str, float]]:
    """``measured`` and ``flips`` of a trial's plan on further samples; kept in the study."""
    key = f"final-{trial.number}"
    kept: dict[str, Any] | None = study.user_attrs.get(key)
    if kept is None:
        kl, flips = measure_all(finals, cuts_of(trial))
        kept = {"measured": group_means(finals, kl), "flips": group_means(finals, flips)}
        study.set_user_attr(key, kept)
    return kept


def sizes(source: Measures | Profile) -> dict[str, int]:
    """Samples of each group."""
    counts = np.bincount(np.asarray(source.sample_group), minlength=len(source.groups))
    return dict(zip(source.groups, counts.tolist(), strict=True))
