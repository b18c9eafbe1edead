"""The Optuna side of a search: a repeatable sampler, early stopping, and trials in order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpcal.planner.storage import owner

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(storage: BaseStorage, name: str, sampler: BaseSampler) -> Study:
    """The study of that name, created where it does not exist; says nothing on the terminal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="minimize"
    )
    study.sampler = sampler
    return study


class RepeatableTpe(BaseSampler):
    """TPE whose draw depends on the seed and the finished trials only, not on earlier draws.

    So a search that was killed and continued suggests what an uninterrupted one would have.

    Source:
        Bergstra et al. 2011 (TPE); multivariate form Falkner et al. 2018, arXiv 1807.01774.
    """

    def __init__(self, seed: int, n_startup_trials: int = 10) -> None:
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        self._tpe = self._fresh(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        others = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
        place = sum(
            t.state in FINISHED or "owner" in t.user_attrs
            for t in others
            if t.number != trial.number
        )
        self._tpe = self._fresh(place)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def _fresh(self, place: int) -> TPESampler:
        digest = hashlib.sha256(f"{self._seed}/{place}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        return TPESampler(seed=seed, multivariate=True, n_startup_trials=self._n_startup_trials)


class WorstGroupPruner(BasePruner):
    """Stops a trial that cannot, or very likely will not, beat the best one's worst group.

    Certain: losses are never negative, so what a group has lost so far, over all its samples, is a
    lower bound of its loss. Likely: on the group in which the best trial loses most, the trial
    loses more, sample by sample (one-sided Wilcoxon signed-rank test, p < 0.05); a trial that is
    worse there is worse altogether, whatever the other groups show. The running mean has to
    agree, because the test looks at ranks and losses have long tails. The tests repeat as samples
    come in, so the chance of stopping a good trial is above 5 %.
    """

    def __init__(self, sample_group: NDArray[np.int64], p_threshold: float = 0.05) -> None:
        self._sample_group = sample_group
        self._size = np.bincount(sample_group)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._wilcoxon = WilcoxonPruner(p_threshold=p_threshold, n_startup_steps=6)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        best = best_trial(study)
        if best is None or best.value is None:
            return False
        seen = trial.intermediate_values
        bound = np.zeros(len(self._size))
        for sample, loss in seen.items():
            bound[self._sample_group[sample]] += loss
        if (bound / np.maximum(self._size, 1)).max() > best.value:
            return True
        if study.best_trial.number != best.number:
            return False  # another process has just found a better one
        known = best.intermediate_values
        worst = self.worst_group(known)
        shared = [s for s in seen if s in known and self._sample_group[s] == worst]
        if not shared or sum(seen[s] - known[s] for s in shared) <= 0:
            return False
        part = copy(trial)
        part.intermediate_values = {s: seen[s] for s in shared}
        return self._wilcoxon.prune(study, part)

    def worst_group(self, losses: Mapping[int, float]) -> int:
        """The group that loses most."""
        return int(np.argmax(self._means(losses)))

    def estimate(self, study: Study, seen: Mapping[int, float]) -> float:
        """What a stopped trial would have reached: never below the best trial."""
        best = best_trial(study)
        running = float(self._means(seen).max())
        if best is None or best.value is None:
            return running
        known = best.intermediate_values
        worst = self.worst_group(known)
        shared = [s for s in seen if s in known and self._sample_group[s] == worst]
        more = float(np.mean([seen[s] - known[s] for s in shared])) if shared else 0.0
        return max(running, best.value + more, np.nextafter(best.value, np.inf))

    def _means(self, losses: Mapping[int, float]) -> NDArray[np.float64]:
        at = self._sample_group[list(losses)]
        total = np.bincount(at, weights=list(losses.values()), minlength=len(self._size))
        return np.asarray(total / np.maximum(np.bincount(at, minlength=len(self._size)), 1))


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
    attrs: dict[str, Any] = {"owner": owner()}
    study.enqueue_trial(dict(params), attrs if place is None else {**attrs, "seed_place": place})


def next_seed(study: Study, n_seeds: int) -> int | None:
    """The first seed that no trial has taken."""
    states = (*FINISHED, TrialState.WAITING, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    taken = {t.user_attrs.get("seed_place") for t in trials}
    return next((place for place in range(n_seeds) if place not in taken), None)


def has_waiting(study: Study) -> bool:
    """Whether a trial is queued already, as after a kill."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
