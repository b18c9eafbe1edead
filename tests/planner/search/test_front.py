from __future__ import annotations

import itertools

from searches import search

from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search.front import Point, front, neighbours_on_front, pareto
from tpcal.planner.search.storage import open_storage


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


def test_a_plan_has_a_cheaper_and_a_dearer_neighbour() -> None:
    points = [point(0.1, 3), point(0.2, 2), point(0.4, 1)]
    assert neighbours_on_front(points, 0.2) == {
        "cheaper": {"layer_average_keep": 0.1, "loss": 3},
        "dearer": {"layer_average_keep": 0.4, "loss": 1},
    }
    assert neighbours_on_front(points, 0.3)["cheaper"]["loss"] == 2  # not on the front itself
    assert list(neighbours_on_front(points, 0.4)) == ["cheaper"]


def test_the_front_needs_no_model_and_holds_what_searches_measured(
    make_world, make_measurer, tmp_path
) -> None:
    world = make_world()
    profile, journal = world.profile(), tmp_path / "study.journal"
    before = front(Predictor(profile), open_storage(journal))
    assert not any(p.measured for p in before)
    assert before[-1] == Point(1.0, 0.0, (), measured=False, worst=0.0)
    for budget in (0.2, 0.4):
        made = search(profile, budget, measurer=make_measurer(world), n_trials=8, storage=journal)
    few = make_measurer(make_world(n_samples=24))
    search(profile, 0.3, measurer=few, n_trials=3, storage=journal)
    points = front(Predictor(profile), open_storage(journal))
    assert points == made.front  # the losses on 24 other samples do not compare
    assert made.plan.provenance["front"] == neighbours_on_front(
        points, made.plan.cost.layer_average_keep
    )
    assert any(p.cuts == made.plan.cuts for p in points)
    least = front(Predictor(profile), open_storage(journal), max_cuts=1)
    assert least
    assert all(p.measured and len(p.cuts) <= 1 for p in least)
