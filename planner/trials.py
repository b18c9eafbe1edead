"""One trial of a search: measuring a plan sample by sample, and reading it back from the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from optuna.trial import FrozenTrial

from tpcal.planner.objective import MOST
from tpcal.planner.study import WorstGroupPruner
from tpcal.plans.schema import Cut


class Measures(Protocol):
    """Runs plans on calibration samples; `tpcal.calibrate.measure.Measurer` is one."""

    @property
    def groups(self) -> Sequence[str]: ...

    @property
    def sample_group(self) -> NDArray[Any]: ...

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[ArrayLike, ArrayLike, ArrayLike]]: ...


@dataclass(frozen=True)
class Tried:
    """One plan of a study."""

    cuts: tuple[Cut, ...]
    loss: float
    """Worst group; an estimate where the trial was stopped."""
    measured: dict[str, float]
    flips: dict[str, float]
    outcome: str
    """``measured`` on all samples, ``stopped`` early, or ``repeat`` of an earlier plan."""


def measure(
    trial: optuna.Trial, measurer: Measures, cuts: Sequence[Cut], pruner: WorstGroupPruner
) -> float:
    """Worst-group loss of a plan; an estimate where the pruner stops the trial."""
    groups = np.asarray(measurer.sample_group)
    kl, flips = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    for samples, losses, flipped in measurer.losses(cuts):
        at = np.asarray(samples, dtype=np.int64)
        # Float32 sums of a KL can end a little below 0, and the pruner's bound relies on >= 0.
        kl[at] = np.clip(np.asarray(losses, dtype=np.float64), 0.0, MOST)
        flips[at] = np.asarray(flipped, dtype=np.float64)
        for sample in at.tolist():
            trial.report(float(kl[sample]), sample)
        if np.isnan(kl).any() and trial.should_prune():
            trial.set_user_attr("outcome", "stopped")
            seen = np.flatnonzero(~np.isnan(kl))
            return pruner.estimate(trial.study, {int(s): float(kl[s]) for s in seen})
    names = measurer.groups
    measured = {g: float(kl[groups == i].mean()) for i, g in enumerate(names)}
    trial.set_user_attr("measured", measured)
    trial.set_user_attr(
        "flips", {g: float(flips[groups == i].mean()) for i, g in enumerate(names)}
    )
    trial.set_user_attr("outcome", "measured")
    return max(measured.values())


def rank(trial: FrozenTrial) -> tuple[float, float, int, int]:
    """Order of fully measured trials: worst group, then mean, then cuts, then age."""
    losses = list(trial.user_attrs["measured"].values())
    return max(losses), sum(losses) / len(losses), len(trial.user_attrs["cuts"]), trial.number


def tried(trial: FrozenTrial) -> Tried:
    """A finished trial of a study."""
    assert trial.value is not None
    attrs = trial.user_attrs
    measured, flips = attrs.get("measured", {}), attrs.get("flips", {})
    return Tried(cuts_of(trial), trial.value, measured, flips, attrs["outcome"])


def cuts_of(trial: FrozenTrial) -> tuple[Cut, ...]:
    """The cuts that a finished trial stands for."""
    return tuple(Cut(**cut) for cut in trial.user_attrs["cuts"])
