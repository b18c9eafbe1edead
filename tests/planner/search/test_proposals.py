from __future__ import annotations

import numpy as np
import pytest

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.problem import Problem
from tpcal.planner.search.encoding import canonical
from tpcal.planner.search.proposals import proposals
from tpcal.plans.budget_projection import spent
from tpcal.plans.plan_records import Cut


@pytest.fixture
def world(make_world):
    world = make_world(n_layers=12, n_tokens=144)
    world.interaction = 3.0
    return world


def measure(world, cuts) -> float:
    lost = np.minimum(world.loss(cuts), MOST)
    means = {g: lost[world.sample_group == i].mean() for i, g in enumerate(world.groups)}
    return Objective().of(means)


def test_proposals_are_new_on_the_budget_and_first_the_most_promising(world) -> None:
    predictor, budget = Predictor(world.profile()), Budget(0.3)
    best = worst_group_optimum(predictor, budget)
    known = [best, *neighbours(predictor, best, budget)[:20]]
    known = [tuple(map(canonical, cuts)) for cuts in known]
    measured = {cuts: measure(world, cuts) for cuts in known}
    found = proposals(Problem(predictor, budget), measured, known)
    assert len(found) > 20
    assert not set(found) & set(known)
    for cuts in found:
        assert 0 <= 0.3 * 144 * 12 - spent(cuts, 144, 12) <= 12
        assert len(cuts) <= 4
    first, last = found[:5], found[-5:]
    assert np.mean([measure(world, c) for c in first]) < np.mean([measure(world, c) for c in last])


def test_the_best_measured_plans_take_turns_to_be_the_start_of_a_step(world) -> None:
    predictor, budget = Predictor(world.profile()), Budget(0.3)
    problem = Problem(predictor, budget)
    best = tuple(map(canonical, worst_group_optimum(predictor, budget)))
    other = tuple(map(canonical, fill(predictor, [Cut(2, 0.5, "attention")], budget)))
    measured = {best: 0.1, other: 0.2}
    firsts = [proposals(problem, measured, [*measured, *range(n)])[0] for n in range(4)]
    assert firsts[0] == firsts[2] != firsts[1] == firsts[3]
    for parent, first in ((best, firsts[0]), (other, firsts[1])):
        assert first in proposals(problem, {parent: 0.1}, [parent])


def test_proposals_change_parameters_too(world) -> None:
    predictor, budget = Predictor(world.profile()), Budget(0.3)
    cuts = fill(predictor, [Cut(2, 0.4, "attention"), Cut(6, 0.2, "diversity")], budget)
    measured = {cuts: measure(world, cuts)}
    found = proposals(Problem(predictor, budget), measured, list(measured))
    tuned = {(c.selector, *sorted(c.params.items())) for plan in found for c in plan if c.params}
    assert {("diversity", ("rule", "max_sum")), ("attention", ("score", "raw"))} <= tuned
