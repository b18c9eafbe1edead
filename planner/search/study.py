"""The Optuna side of a search: repeatable samplers, early stopping, and trials in order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpcal.planner.prediction.objective import Objective

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
N_FIRST = 14
"""Samples before a trial is compared; with fewer the test permutes, which takes 0.1 s."""


def open_study(storage: BaseStorage, name: str, sampler: BaseSampler) -> Study:
    """The study of that name, created where it does not exist; says nothing on the terminal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="minimize"
    )
    study.sampler = sampler
    return study


SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {
        "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, n_startup_trials=10),
        "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=10),
        "cmaes": lambda seed: CmaEsSampler(seed=seed, n_startup_trials=10),
        "nsgaii": lambda seed: NSGAIISampler(seed=seed, population_size=10),
        "random": lambda seed: RandomSampler(seed=seed),
    }
)
"""Optuna's samplers by name; docs/planner.md compares them."""


class Repeatable(BaseSampler):
    """A sampler whose draw depends on the seed and the finished trials only, not on earlier draws.

    So a search that was killed and continued suggests what an uninterrupted one would have.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._sampler = self._fresh(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        others = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
        place = sum(
            t.state in FINISHED or "owner" in t.user_attrs
            for t in others
            if t.number != trial.number
        )
        self._sampler = self._fresh(place)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)

    def _fresh(self, place: int) -> BaseSampler:
        digest = hashlib.sha256(f"{self._seed}/{place}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return SAMPLERS[self._name](int.from_bytes(digest[:4], "big"))


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


def best_trial(study: Study) -> FrozenTrial | None:
    """The first trial with the smallest value among those measured on every sample."""
    full = fully_measured(study)
    return min(full, key=lambda t: (t.value, t.number)) if full else None


def fully_measured(study: Study) -> list[FrozenTrial]:
    """Trials measured on every sample, without repeats."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in trials if t.user_attrs.get("outcome") == "measured"]


def enqueue(study: Study, params: Mapping[str, Any], place: int | None = None) -> None:
    """Makes the next trial one of these parameters; ``place`` marks a seed."""
    study.enqueue_trial(dict(params), None if place is None else {"seed_place": place})


def next_seed(study: Study, n_seeds: int) -> int | None:
    """The first seed that no trial has taken."""
    states = (*FINISHED, TrialState.WAITING, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    taken = {t.user_attrs.get("seed_place") for t in trials}
    return next((place for place in range(n_seeds) if place not in taken), None)


def has_waiting(study: Study) -> bool:
    """Whether a trial is queued already, as after a kill."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
