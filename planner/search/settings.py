"""How a search runs, whatever it searches for."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.storages import BaseStorage

from tpcal.plans.progress import Progress

N_TRIALS = 100
"""Plans that a search for one budget measures by default."""
N_TRIALS_OF_FRONT = 300
"""Plans that a search of the whole front measures by default, all budgets together."""


@dataclass(frozen=True)
class SearchSettings:
    """How a search runs.

    Example:
        >>> from tpcal.planner.search.settings import SearchSettings
        >>> SearchSettings(n_trials=200, timeout=600, storage="study.journal").n_trials
        200
    """

    n_trials: int = N_TRIALS
    """Plans measured in all, those of earlier runs of the study among them. Suggestions that
    repeat a plan are neither measured again nor counted, up to 4 per trial."""
    timeout: float | None = None
    """Seconds after which no further trial starts."""
    seed: int = 0
    """Seed of the sampler."""
    storage: Path | str | BaseStorage | None = None
    """Journal file or database URL that keeps the studies; None: memory."""
    command: str | None = None
    """What the user typed, for the plan's provenance."""
    progress: Progress | None = None
    """Told after every trial."""

    @property
    def end(self) -> float | None:
        """When a search that starts now runs out of time, by `time.monotonic`."""
        return None if self.timeout is None else time.monotonic() + self.timeout

    def part(self, done: int, n_trials: int, total: int, end: float | None) -> SearchSettings:
        """The settings of one of several searches in a row that share trials and time.

        Args:
            done: Trials of the searches before it.
            n_trials: Its own trials.
            total: Trials of all of them.
            end: When they run out of time, as `end` of the settings of all.
        """
        told = self.progress
        return replace(
            self,
            n_trials=n_trials,
            timeout=None if end is None else max(0.0, end - time.monotonic()),
            progress=told and (lambda more, of, what: told(done + more, total, what)),
        )
