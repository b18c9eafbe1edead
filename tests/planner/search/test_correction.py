from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.problem import Problem
from tpcal.planner.search.correction import FEWEST, Correction
from tpcal.planner.search.encoding import canonical
from tpcal.planner.search.proposals import proposals
from tpcal.plans.budget_projection import Limits, project, spent
from tpcal.plans.schema import Cut


def some_plans(n: int, n_tokens: int, n_layers: int) -> list[tuple[Cut, ...]]:
    rng = np.random.default_rng(0)
    plans = []
    for _ in range(n):
        layers = sorted(rng.choice(n_layers, size=3, replace=False).tolist())
        names = rng.choice(["grid", "diversity"], size=3)
        keeps = sorted(rng.uniform(0.05, 0.9, size=3), reverse=True)
        cuts = [Cut(la, k, str(s)) for la, k, s in zip(layers, keeps, names, strict=True)]
        plans.append(project(cuts, 0.3, n_tokens, n_layers, limits=Limits(n_tokens, n_layers)))
    return list(dict.fromkeys(plans))


@pytest.fixture
def world(make_world):
    world = make_world(n_layers=12, n_tokens=144)
    world.interaction = 3.0
    return world


def measure(world, cuts) -> float:
    lost = np.minimum(world.loss(cuts), MOST)
    means = {g: lost[world.sample_group == i].mean() for i, g in enumerate(world.groups)}
    return Objective().of(means)


def test_with_few_measured_plans_the_prediction_stands(world) -> None:
    predictor, plans = Predictor(world.profile()), some_plans(FEWEST - 1, 144, 12)
    correction = Correction(predictor, dict.fromkeys(plans, 5.0))
    wanted = [predictor.score(cuts) for cuts in plans]
    np.testing.assert_allclose(correction.scores(plans), wanted, atol=2e-3)


def test_learned_from_some_plans_it_predicts_others_better(world) -> None:
    predictor, plans = Predictor(world.profile()), some_plans(120, 144, 12)
    true = np.array([measure(world, cuts) for cuts in plans])
    known, rest = dict(zip(plans[:50], true[:50], strict=True)), plans[50:]
    plain = np.array([predictor.score(cuts) for cuts in rest])
    better = Correction(predictor, known).scores(rest)
    off, rank = np.log(plain / true[50:]), spearmanr(plain, true[50:]).statistic
    assert np.abs(np.log(better / true[50:])).mean() < 0.5 * np.abs(off).mean()
    assert spearmanr(better, true[50:]).statistic > rank


def test_caution_raises_what_is_not_known(world) -> None:
    predictor, plans = Predictor(world.profile()), some_plans(60, 144, 12)
    known = {cuts: measure(world, cuts) for cuts in plans[:40]}
    correction = Correction(predictor, known)
    careful, hopeful = correction.scores(plans, 1.0), correction.scores(plans, -1.0)
    assert (careful > hopeful).all()
    spread = np.log(careful / hopeful)
    assert spread[40:].mean() > spread[:40].mean()


def test_proposals_are_new_on_the_budget_and_first_the_most_promising(world) -> None:
    predictor, budget = Predictor(world.profile()), Budget(0.3)
    best = worst_group_optimum(predictor, budget)
    known = [best, *neighbours(predictor, best, budget, 4)[:20]]
    known = [tuple(map(canonical, cuts)) for cuts in known]
    measured = {cuts: measure(world, cuts) for cuts in known}
    found = proposals(Problem(predictor, budget), measured, known, np.random.default_rng(0))
    assert len(found) > 20
    assert not set(found) & set(known)
    for cuts in found:
        assert 0 <= 0.3 * 144 * 12 - spent(cuts, 144, 12) <= 12
        assert len(cuts) <= 4
    first, last = found[:5], found[-5:]
    assert np.mean([measure(world, c) for c in first]) < np.mean([measure(world, c) for c in last])


def test_proposals_change_parameters_too(world) -> None:
    predictor, budget = Predictor(world.profile()), Budget(0.3)
    cuts = fill(predictor, [Cut(2, 0.4, "attention"), Cut(6, 0.2, "diversity")], budget)
    measured = {cuts: measure(world, cuts)}
    found = proposals(
        Problem(predictor, budget), measured, list(measured), np.random.default_rng(0)
    )
    tuned = {(c.selector, *sorted(c.params.items())) for plan in found for c in plan if c.params}
    assert {("diversity", ("rule", "max_sum")), ("attention", ("score", "raw"))} <= tuned
