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
"""Fewest samples of a trial that is compared; below, the test permutes, which takes 0.1 s."""


class BestPruner(BasePruner):
    """Stops a trial that cannot, or very likely will not, beat the best one.

    Certain: losses are never negative, so the sum of a group's losses so far, divided by the
    number of all its samples, is a lower bound of its mean loss. Likely: on the samples seen so
    far the trial's objective is worse than the best one's, and it loses more sample by sample
    (one-sided Wilcoxon signed-rank test, p < 0.05). Both must agree, because the test compares
    ranks and losses have long tails. The test is repeated as samples come in, so the chance of
    stopping a good trial is above 5 %.
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
        # Rule 1, certain: objective(sum of a group's losses so far / its size) > best objective.
        if self._of(seen, seen, self._size) > best.value:
            return True
        if study.best_trial.number != best.number:
            return False  # another process has just found a better one
        # Rule 2, likely: worse on the shared samples by the objective and by the signed-rank test.
        return self._behind(seen, best) > 0 and self._wilcoxon.prune(study, trial)

    def estimate(self, study: Study, seen: Mapping[int, float]) -> float:
        """The objective a stopped trial is given: an estimate that is above the best trial's."""
        best = best_trial(study)
        running = self._of(seen, seen)
        if best is None or best.value is None:
            return running
        # Best objective + difference on the shared samples, but always above the best objective.
        more = best.value + self._behind(seen, best)
        return max(running, more, float(np.nextafter(best.value, np.inf)))

    def _behind(self, seen: Mapping[int, float], best: FrozenTrial) -> float:
        """Objective of a trial minus that of the best one, on the samples that both have."""
        known = best.intermediate_values
        shared = [s for s in seen if s in known]
        return self._of(seen, shared) - self._of(known, shared)

    def _of(
        self,
        losses: Mapping[int, float],
        samples: Iterable[int],
        size: NDArray[np.int64] | None = None,
    ) -> float:
        """Objective of the groups' mean losses over some samples; 0 for a group without any.

        ``size`` replaces the number of samples that each group's sum is divided by.
        """
        at = list(samples)
        own = self._sample_group[at]
        total = np.bincount(own, weights=[losses[s] for s in at], minlength=len(self._size))
        count = np.bincount(own, minlength=len(self._size)) if size is None else size
        return float(self._objective.values(total / np.maximum(count, 1), self._groups))
