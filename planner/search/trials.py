"""One trial of a search: measuring a plan sample by sample, and reading it back from the study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import ArrayLike, NDArray
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.planner.search.study import BestPruner
from tpcal.plans.errors import RunFailed
from tpcal.plans.schema import Condition, Cut

Floats = NDArray[np.float64]


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
    """The objective; an estimate where the trial was stopped."""
    measured: dict[str, float]
    flips: dict[str, float]
    outcome: str
    """``measured`` on all samples, ``stopped`` early, or ``repeat`` of an earlier plan."""


def measure(
    trial: optuna.Trial,
    measurer: Measures,
    cuts: Sequence[Cut],
    pruner: BestPruner,
    objective: Objective,
) -> float:
    """Objective of a plan; an estimate where the pruner stops the trial."""
    kl, flips = np.full((2, len(measurer.sample_group)), np.nan)
    for at in _fill(measurer, cuts, kl, flips):
        for sample in at.tolist():
            trial.report(float(kl[sample]), sample)
        if np.isnan(kl).any() and trial.should_prune():
            trial.set_user_attr("outcome", "stopped")
            seen = np.flatnonzero(~np.isnan(kl))
            return pruner.estimate(trial.study, {int(s): float(kl[s]) for s in seen})
    measured = group_means(measurer, kl)
    trial.set_user_attr("measured", measured)
    trial.set_user_attr("flips", group_means(measurer, flips))
    trial.set_user_attr("outcome", "measured")
    return objective.of(measured)


def measure_all(measurer: Measures, cuts: Sequence[Cut]) -> tuple[Floats, Floats]:
    """[n] nats, at most `MOST`, and [n] 1 where the answer changes, of every sample."""
    kl, flips = np.full((2, len(measurer.sample_group)), np.nan)
    for _ in _fill(measurer, cuts, kl, flips):
        pass
    return kl, flips


def group_means(measurer: Measures, values: Floats) -> dict[str, float]:
    """Mean of [n] values for each group."""
    own = np.asarray(measurer.sample_group)
    return {g: float(values[own == i].mean()) for i, g in enumerate(measurer.groups)}


def _fill(
    measurer: Measures, cuts: Sequence[Cut], kl: Floats, flips: Floats
) -> Iterator[NDArray[np.int64]]:
    """Fills in the results batch by batch and yields the samples of each."""
    for samples, losses, flipped in measurer.losses(cuts):
        at = np.asarray(samples, dtype=np.int64)
        # Float32 sums of a KL can end a little below 0, and the pruner's bound relies on >= 0.
        kl[at] = np.clip(np.asarray(losses, dtype=np.float64), 0.0, MOST)
        flips[at] = np.asarray(flipped, dtype=np.float64)
        if not np.isfinite(kl[at]).all():
            raise RunFailed(
                "The losses of a plan must be numbers; got nan. Use --dtype float32 or bfloat16."
            )
        yield at


def rank(trial: FrozenTrial) -> tuple[float, int, int]:
    """Order of fully measured trials: objective, then cuts, then age."""
    assert trial.value is not None
    return trial.value, len(trial.user_attrs["cuts"]), trial.number


def tried(trial: FrozenTrial) -> Tried:
    """A finished trial of a study."""
    assert trial.value is not None
    attrs = trial.user_attrs
    measured, flips = attrs.get("measured", {}), attrs.get("flips", {})
    return Tried(cuts_of(trial), trial.value, measured, flips, attrs["outcome"])


def cuts_of(trial: FrozenTrial) -> tuple[Cut, ...]:
    """The cuts that a finished trial stands for."""
    return tuple(map(_cut, trial.user_attrs["cuts"]))


def _cut(plain: dict[str, Any]) -> Cut:
    condition = plain["condition"]
    return Cut(**{**plain, "condition": Condition(**condition) if condition else None})
