"""The Pareto front: plans that no other plan beats in both cost and worst-group loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tpcal.plans.schema import Cut


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
