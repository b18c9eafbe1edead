"""Optuna's samplers, made repeatable."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpcal.planner.search.ledger import n_started

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = MappingProxyType(
    {
        "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, n_startup_trials=10),
        "random": lambda seed: RandomSampler(seed=seed),
    }
)
"""Optuna's samplers by name. A search uses ``tpe``; ``random`` is the baseline that the benchmark
compares it with. The names are part of the names of studies (`run`)."""


class Repeatable(BaseSampler):
    """A sampler whose draw depends on the seed and the finished trials only, not on earlier draws.

    So a search that was killed and continued suggests what an uninterrupted one would have.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        self._sampler = self._fresh(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._fresh(n_started(study, trial.number))
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
