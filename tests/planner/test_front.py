from __future__ import annotations

import itertools

from tpcal.planner.front import Point, pareto


def point(cost: float, loss: float) -> Point:
    return Point(cost, loss, (), True)


def test_the_front_rises_in_cost_and_falls_in_loss() -> None:
    points = [
        point(0.5, 1),
        point(0.2, 3),
        point(0.3, 3),
        point(0.4, 2),
        point(0.6, 1),
        point(0.2, 4),
    ]
    front = pareto(points)
    assert front == (point(0.2, 3), point(0.4, 2), point(0.5, 1))
    for a, b in itertools.pairwise(front):
        assert a.layer_average_keep < b.layer_average_keep
        assert a.loss > b.loss


def test_no_points_have_no_front() -> None:
    assert pareto([]) == ()
