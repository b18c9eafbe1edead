"""Early stopping: a trial ends as soon as its plan is known to be worse than the best one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.objective import Objective
from tpcal.planner.search.ledger import best_trial

N_FIRST = 14
"""Samples before a trial is compared; with fewer the test permutes, which takes 0.1 s."""


class BestPruner(BasePruner):
    """Stops a trial that cannot, or very likely will not, beat the best one.

    Certain: losses are never negative, so what a group has lost so far, over all its samples, is a
    lower bound of its loss. Likely: on the samples seen so far the trial's objective is worse than
    the best one's, and it loses more, sample by sample (one-sided Wilcoxon signed-rank test,
    p < 0.05). Both have to agree, because the test looks at ranks and losses have long tails. The
    tests repeat as samples come in, so the chance of stopping a good trial is above 5 %.
    """

    def __init__(
        self,
        sample_group: NDArray[np.int64],
        groups: Sequence[str],
        objective: Objective,
        p_threshold: float = 0.05,
    ) -> None:
        self._sample_group, self._groups, self._objective = sample_group, groups, objective
        self._size = np.bincount(sample_group, minlength=len(groups))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._wilcoxon = WilcoxonPruner(p_threshold=p_threshold, n_startup_steps=N_FIRST)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        best = best_trial(study)
        if best is None or best.value is None:
            return False
        seen = trial.intermediate_values
        if self._of(seen, seen, self._size) > best.value:
            return True
        if study.best_trial.number != best.number:
            return False  # another process has just found a better one
        return self._behind(seen, best) > 0 and self._wilcoxon.prune(study, trial)

    def estimate(self, study: Study, seen: Mapping[int, float]) -> float:
        """What a stopped trial would have reached: never below the best trial."""
        best = best_trial(study)
        running = self._of(seen, seen)
        if best is None or best.value is None:
            return running
        more = best.value + self._behind(seen, best)
        return max(running, more, float(np.nextafter(best.value, np.inf)))

    def _behind(self, seen: Mapping[int, float], best: FrozenTrial) -> float:
        """By how much a trial is worse than the best one, on the samples that both saw."""
        known = best.intermediate_values
        shared = [s for s in seen if s in known]
        return self._of(seen, shared) - self._of(known, shared)

    def _of(
        self,
        losses: Mapping[int, float],
        samples: Iterable[int],
        size: NDArray[np.int64] | None = None,
    ) -> float:
        """Objective of some samples' means; 0 for a group without. ``size`` divides instead."""
        at = list(samples)
        own = self._sample_group[at]
        total = np.bincount(own, weights=[losses[s] for s in at], minlength=len(self._size))
        count = np.bincount(own, minlength=len(self._size)) if size is None else size
        return float(self._objective.values(total / np.maximum(count, 1), self._groups))
