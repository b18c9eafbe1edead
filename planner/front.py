"""The Pareto front: plans that no other plan beats in both cost and worst-group loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage

from tpcal.planner.budget import LAYER_AVERAGE, Budget
from tpcal.planner.optimum import worst_group_optimum
from tpcal.planner.predict import Predictor
from tpcal.planner.study import fully_measured
from tpcal.planner.trials import cuts_of, rank
from tpcal.plans.schema import Cut

BUDGETS = (0.05, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class Point:
    """One plan by its cost and its loss."""

    layer_average_keep: float
    loss: float
    """Of the worst group, in nats per answer token."""
    cuts: tuple[Cut, ...]
    measured: bool
    """Whether the model was run; otherwise the loss is predicted."""


def pareto(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that cost less or lose less than every other, cheapest first.

    Of points with one cost and one loss the one with fewer cuts stays, then the first.
    """
    ordered = sorted(points, key=lambda p: (p.layer_average_keep, p.loss, len(p.cuts)))
    front: list[Point] = []
    for point in ordered:
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return tuple(front)


def front(predictor: Predictor, storage: BaseStorage, max_cuts: int = 4) -> tuple[Point, ...]:
    """The front of all plans that searches from one profile measured; predicted where none were.

    Losses compare only on the same samples: of searches on several sets of samples, those on the
    set with most plans count.

    Args:
        predictor: Of the profile.
        storage: Where its searches are kept.
        max_cuts: Most cuts of a predicted plan.
    """
    by_samples: dict[str, list[Point]] = defaultdict(list)
    start = prefix(predictor)
    for name in optuna.get_all_study_names(storage):
        if name.startswith(start):
            samples = name.removeprefix(start).partition("-")[0]
            by_samples[samples] += measured(predictor, storage, name)
    most = max(by_samples.values(), key=len, default=[])
    if most:
        return pareto(most)
    return pareto(predictions(predictor, max_cuts))


def prefix(predictor: Predictor) -> str:
    """How the names of all studies of a profile begin."""
    return f"tpcal-{predictor.profile.digest.removeprefix('sha256:')[:12]}-"


def measured(predictor: Predictor, storage: BaseStorage, study: str) -> Iterator[Point]:
    """Every plan that was measured on all samples of a study."""
    for trial in fully_measured(optuna.load_study(study_name=study, storage=storage)):
        cuts = cuts_of(trial)
        yield Point(average(predictor, cuts), rank(trial)[0], cuts, measured=True)


def predictions(predictor: Predictor, max_cuts: int) -> Iterator[Point]:
    """The plan of the smallest predicted loss for each of `BUDGETS`, and the unpruned model."""
    for budget in BUDGETS:
        if budget >= predictor.limits.least:
            cuts = worst_group_optimum(predictor, Budget(budget), max_cuts, rounds=4)
            yield point(predictor, cuts)
    yield point(predictor, ())


def point(predictor: Predictor, cuts: tuple[Cut, ...]) -> Point:
    """A plan with its predicted loss."""
    loss = float(predictor.losses(cuts).max())
    return Point(average(predictor, cuts), loss, cuts, measured=False)


def average(predictor: Predictor, cuts: tuple[Cut, ...]) -> float:
    """Layer average of keep; of a conditional drop, what to expect."""
    return predictor.prices.of(cuts, LAYER_AVERAGE) if predictor.limits.n_tokens else 1.0


def beside(points: Iterable[Point], layer_average_keep: float) -> dict[str, Any]:
    """The next cheaper and the next dearer plan of a front, as plain data for a plan's file."""
    gap = 1e-9
    cheaper = [p for p in points if p.layer_average_keep < layer_average_keep - gap]
    dearer = [p for p in points if p.layer_average_keep > layer_average_keep + gap]
    found = {"cheaper": cheaper[-1:], "dearer": dearer[:1]}
    return {
        name: {
            "layer_average_keep": round(p[0].layer_average_keep, 6),
            "loss": round(p[0].loss, 6),
        }
        for name, p in found.items()
        if p
    }
