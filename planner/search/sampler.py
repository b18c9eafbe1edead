"""Optuna's sampler, made repeatable."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpcal.planner.search.ledger import n_started

SUGGESTED_BY = "tpe and proposals"
"""Recorded in a plan's provenance."""


class RepeatableTPE(BaseSampler):
    """Optuna's TPE, with draws that depend on the seed and the finished trials only.

    A search that was killed and continued therefore suggests what an uninterrupted one would have.

    Args:
        seed: Another one draws other plans.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
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
            own = int.from_bytes(digest[:4], "big")
            return TPESampler(seed=own, multivariate=True, n_startup_trials=10)
