"""Early stopping: a trial ends as soon as its plan is known not to be one of the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.objective import Objective
from tpcal.planner.search.ledger import nth_best

N_BEST = 3
"""Number of plans that a search must not lose by chance. docs/planner.md has the measurement."""
ERROR_RATE = 0.05
"""Largest share of the plans as good as the last of the best ones that are stopped by chance."""
N_FIRST = 14
"""Fewest samples of a trial that is compared; below, the test permutes, which takes 0.1 s."""

Losses = Mapping[int, float]
"""Nats by the number of the sample."""


class BestPruner(BasePruner):
    """Stops a trial that cannot, or very likely will not, be one of the best of the study.

    A trial is compared with the plan that is the last of the ``n_best`` best so far. The best one
    would be too strict: the best of many measurements owes some of its rank to chance, and
    a plan that is lucky on the samples of the search would stop all that come after it.

    Certain: losses are never negative, so the sum of a group's losses so far, divided by the
    number of all its samples, is a lower bound of its mean loss. Likely: on the samples seen so
    far, which must be of all groups, the trial's objective is worse than that plan's, and it
    loses more sample by sample (one-sided Wilcoxon signed-rank test). Both must agree, because the
    test compares ranks and losses have long tails.

    The test is repeated as samples come in. Every test may err with a part of `ERROR_RATE`, the
    share that the samples since the last test are of all samples. The parts add up to
    `ERROR_RATE`, so whatever the size of the batches, a plan whose losses differ from those of the
    other one by chance alone is stopped with at most that probability.

    Args:
        sample_group: [n] index of each sample's group in ``groups``.
        groups: Names of the groups.
        objective: What is minimised.
        n_best: Number of plans that are the best ones. No trial is stopped before so many were
            measured on all samples.
    """

    def __init__(
        self,
        sample_group: NDArray[np.int64],
        groups: Sequence[str],
        objective: Objective,
        n_best: int = N_BEST,
    ) -> None:
        self._sample_group, self._groups, self._objective = sample_group, groups, objective
        self._size = np.bincount(sample_group, minlength=len(groups))
        self._n_best = n_best
        self._tested: dict[int, int] = {}  # samples at the last test, by the number of the trial

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        rival = nth_best(study, self._n_best)
        if rival is None or rival.value is None:
            return False
        seen = trial.intermediate_values
        # Rule 1, certain: objective(sum of a group's losses so far / its size) > the rival's.
        if self._of(seen, seen, self._size) > rival.value:
            return True
        # Rule 2, likely: worse on the shared samples by the objective and by the signed-rank test.
        if len(seen) < N_FIRST or not self._has_all_groups(seen):
            return False
        before = self._tested.get(trial.number, 0)
        self._tested[trial.number] = len(seen)
        return self.is_likely_worse(seen, rival.intermediate_values, len(seen) - before)

    def is_likely_worse(self, seen: Losses, known: Losses, n_new: int) -> bool:
        """Whether a plan very likely loses more than another one, by a test of one row of tests.

        Args:
            seen: Its losses so far.
            known: Losses of the other plan on all samples.
            n_new: Number of samples that no earlier test of the row had.
        """
        if self._behind(seen, known) <= 0:
            return False
        from scipy.stats import wilcoxon  # takes a second to load

        more = [loss - known[s] for s, loss in seen.items() if s in known]
        # Equal losses count half for either side: the many samples that no plan loses are evidence
        # that the plans are alike.
        p = wilcoxon(more, zero_method="zsplit", alternative="greater").pvalue
        return bool(p < ERROR_RATE * n_new / self._size.sum())

    def _has_all_groups(self, seen: Losses) -> bool:
        own = np.bincount(self._sample_group[list(seen)], minlength=len(self._size))
        return bool((own[self._size > 0] > 0).all())

    def estimate(self, study: Study, seen: Losses) -> float:
        """The objective a stopped trial is given: an estimate that is above the rival's."""
        rival = nth_best(study, self._n_best)
        running = self._of(seen, seen)
        if rival is None or rival.value is None:
            return running
        # Its objective + the difference on the shared samples, but always above its objective.
        more = rival.value + self._behind(seen, rival.intermediate_values)
        return max(running, more, float(np.nextafter(rival.value, np.inf)))

    def _behind(self, seen: Losses, known: Losses) -> float:
        """Objective of a trial minus that of another one, on the samples that both have."""
        shared = [s for s in seen if s in known]
        return self._of(seen, shared) - self._of(known, shared)

    def _of(
        self,
        losses: Losses,
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
