"""The Pareto front: plans that no other plan beats in both cost and loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study

from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search.ledger import Ledger, cuts_of, fully_measured, means_of
from tpcal.plans.plan_records import Cut

BUDGETS = (0.05, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class Point:
    """One plan by its cost and its loss."""

    layer_average_keep: float
    loss: float
    """`Objective` of the groups' losses, in nats per answer token."""
    cuts: tuple[Cut, ...]
    measured: bool
    """Whether the model was run; otherwise the loss is predicted."""
    worst: float = math.nan
    """Loss of the worst group, in nats per answer token."""


@dataclass(frozen=True)
class MeasuredPoint:
    """A plan that was measured on all samples of a search."""

    point: Point
    measured: Mapping[str, float]
    """Nats per group."""
    flips: Mapping[str, float]
    """Share of changed answers per group."""


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


def front(
    predictor: Predictor,
    storage: Path | str | BaseStorage | None,
    max_cuts: int | None = None,
) -> tuple[Point, ...]:
    """The front of all plans that searches from one profile measured; predicted if none were.

    Losses compare only on the same samples: of searches on several sets of samples, those on the
    set with most plans count.

    Args:
        predictor: Of the profile.
        storage: Where its searches are kept.
        max_cuts: Most cuts of a measured plan; None: any number.

    Raises:
        UsageError: ``storage`` cannot be used.
    """
    known = on_one_set(predictor, Ledger.open(storage, predictor.profile))
    if known:
        points = (found.point for found in known)
        return pareto(p for p in points if max_cuts is None or len(p.cuts) <= max_cuts)
    return pareto(predictions(predictor))


def on_one_set(predictor: Predictor, ledger: Ledger) -> list[MeasuredPoint]:
    """Every plan that searches from a profile measured, on the samples that most were."""
    known: list[dict[tuple[Cut, ...], MeasuredPoint]] = []
    for studies in ledger.by_samples():
        known.append({})
        for found in measured(predictor, studies):
            known[-1].setdefault(found.point.cuts, found)
    return list(max(known, key=len, default={}).values())


def measured(predictor: Predictor, studies: Iterable[Study]) -> list[MeasuredPoint]:
    """Every plan that was measured on all samples of a study and runs in the engine."""
    found = []
    for trial in (trial for study in studies for trial in fully_measured(study)):
        cuts, means = cuts_of(trial), means_of(trial)
        if not predictor.allows(cuts):
            continue
        loss, worst = predictor.objective.of(means.measured), max(means.measured.values())
        point = Point(average(predictor, cuts), loss, cuts, measured=True, worst=worst)
        found.append(MeasuredPoint(point, means.measured, means.flips))
    return found


def predictions(predictor: Predictor) -> Iterator[Point]:
    """The plan of the smallest predicted loss for each of `BUDGETS`, and the unpruned model."""
    for budget in BUDGETS:
        if budget >= predictor.limits.least:
            cuts = worst_group_optimum(predictor, Budget(budget), rounds=4)
            yield point(predictor, cuts)
    yield point(predictor, ())


def point(predictor: Predictor, cuts: tuple[Cut, ...]) -> Point:
    """A plan with its predicted loss."""
    losses = predictor.loss(cuts)
    loss, worst = predictor.objective.of(losses), max(losses.values())
    return Point(average(predictor, cuts), loss, cuts, measured=False, worst=worst)


def average(predictor: Predictor, cuts: tuple[Cut, ...]) -> float:
    """Layer average of keep; of a conditional drop, what to expect."""
    return predictor.prices.of(cuts, LAYER_AVERAGE) if predictor.limits.n_tokens else 1.0


def neighbours_on_front(points: Iterable[Point], layer_average_keep: float) -> dict[str, Any]:
    """The next cheaper and the next dearer plan of a front, as plain data for a plan's file."""
    gap = 1e-9
    cheaper = [p for p in points if p.layer_average_keep < layer_average_keep - gap]
    dearer = [p for p in points if p.layer_average_keep > layer_average_keep + gap]
    found = {"cheaper": cheaper[-1:], "dearer": dearer[:1]}
    return {
        name: {
            "layer_average_keep": round(p[0].layer_average_keep, 6),
            "loss": round(p[0].loss, 6),
            **({} if math.isnan(p[0].worst) else {"worst": round(p[0].worst, 6)}),
        }
        for name, p in found.items()
        if p
    }


def named(predictor: Predictor, points: Iterable[Point]) -> dict[tuple[Cut, ...], str]:
    """The published schedules among the plans, by their cuts, as searches put them on budgets."""
    from tpcal.planner.prediction.neighbours import fill
    from tpcal.planner.search.encoding import canonical
    from tpcal.plans.plan_file import load_preset, presets

    found: dict[tuple[Cut, ...], str] = {}
    for point in points:
        wanted = tuple(map(canonical, point.cuts))
        above = min((b for b in BUDGETS if b >= point.layer_average_keep - 1e-9), default=1.0)
        for name in presets() if wanted else ():
            cuts = load_preset(name, predictor.limits.n_layers).cuts
            for target in (point.layer_average_keep, above):
                if target >= predictor.limits.least:
                    met = fill(predictor, cuts, Budget(target))
                    if tuple(map(canonical, met)) == wanted and _same_selectors(cuts, met):
                        found.setdefault(point.cuts, name)
    return found


def _same_selectors(one: Iterable[Cut], other: Iterable[Cut]) -> bool:
    """Whether a budget left a schedule itself: no other selector, no drop-all that it has not."""
    return {cut.selector for cut in other} <= {cut.selector for cut in one}
