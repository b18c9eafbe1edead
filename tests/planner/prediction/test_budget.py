"""Budgets in FLOPs, KV bytes and milliseconds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from searches import search

from tpcal.planner.prediction.budget import KINDS, Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.optimum import Solver, seeds, worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.cost import prefill_flops
from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.plan_records import Cut

CUTS = (Cut(1, 0.5, "grid"), Cut(4, 0.2, "attention"), Cut(6, 0.0))


@pytest.fixture
def predictor(make_world):
    return Predictor(make_world(n_tokens=144).profile())


@pytest.mark.parametrize(
    "budget",
    [Budget(0.4, "flops"), Budget(0.4, "kv"), Budget(14.0, "ms"), Budget(0.3)],
    ids=lambda budget: budget.kind,
)
def test_plans_cost_what_the_budget_allows_and_hardly_less(predictor, budget):
    one_token = 1 / 144  # in every layer
    for cuts in (CUTS, CUTS[:1], (Cut(0, 0.3, "grid"),), (Cut(5, 0.0),)):
        price = predictor.prices.of(fill(predictor, cuts, budget), budget.kind)
        assert price <= budget.target * (1 + 1e-9)
        unpruned = predictor.prices.of((), budget.kind)
        assert price >= budget.target * (1 - 1e-3) - one_token * unpruned
    for plan in seeds(predictor, budget):
        assert predictor.prices.of(plan, budget.kind) <= budget.target * (1 + 1e-9)


def test_the_price_of_kv_by_hand(predictor):
    # 8 layers, 144 visual and 10 text tokens: 2 layers hold 154, 6 hold 10 + 36
    assert predictor.prices.of([Cut(2, 0.25, "grid")], "kv") == (2 * 154 + 6 * 46) / (8 * 154)
    # layer times: 1 ms at 10 tokens, 3 ms at 200, a straight line between
    times = [1 + 2 * (n - 10) / 190 for n in (154, 46)]
    assert predictor.prices.of([Cut(2, 0.25, "grid")], "ms") == pytest.approx(
        2 * times[0] + 6 * times[1]
    )


def test_a_budget_of_flops_pays_for_merging(make_world):
    profile = make_world(n_tokens=144).profile()
    plain, merging = (
        Predictor(replace(profile, merge=merge)).prices.of([Cut(2, 0.25, "grid")], "flops")
        for merge in (None, "mean")
    )
    unpruned = prefill_flops(profile.shape, [144 + profile.n_text] * 8)
    compared = 2 * (144 - 36) * 36 * profile.shape.hidden
    assert merging - plain == pytest.approx(compared / unpruned)


def test_a_budget_of_kv_is_one_of_layer_average(predictor):
    budget = Budget(0.5, "kv")
    average = predictor.prices.average(budget)
    assert average == pytest.approx((0.5 * 154 - 10) / 144, abs=5e-3)
    found = predictor.losses(worst_group_optimum(predictor, budget)).max()
    same = predictor.losses(worst_group_optimum(predictor, Budget(average))).max()
    assert found == pytest.approx(same, rel=0.05)


def test_the_optimum_is_on_the_budget_before_it_is_filled(predictor):
    budget = Budget(0.5, "flops")
    cuts = Solver(predictor, budget).optimum()
    assert predictor.prices.of(cuts, "flops") == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["flops", "kv", "ms"])
def test_a_budget_below_the_cheapest_plan_names_what_can_be_reached(predictor, kind):
    with pytest.raises(BudgetError, match="must be at least") as caught:
        search(predictor.profile, Budget(0.001, kind))
    reachable = caught.value.reachable
    plan = search(predictor.profile, Budget(reachable, kind)).plan
    assert plan.budget.reached <= reachable


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_budgets_are_positive(predictor, kind, target):
    with pytest.raises(UsageError, match="budget must be"):
        search(predictor.profile, Budget(target, kind))


def test_shares_are_at_most_one_and_milliseconds_are_not(predictor):
    for kind in ("layer_average", "flops", "kv"):
        with pytest.raises(UsageError, match=r"in \(0, 1\]; got 2"):
            search(predictor.profile, Budget(2.0, kind))
    assert search(predictor.profile, Budget(1000.0, "ms")).plan.cuts == ()


def test_milliseconds_need_times(predictor):
    with pytest.raises(UsageError, match="layer times"):
        search(replace(predictor.profile, layer_ms=()), Budget(5.0, "ms"))


def test_the_plan_says_what_its_budget_is_a_share_of(predictor):
    plan = search(predictor.profile, Budget(0.4, "flops")).plan
    assert (plan.budget.kind, plan.budget.target) == ("flops", 0.4)
    assert plan.budget.reached == pytest.approx(0.4, rel=5e-3)
    assert search(predictor.profile, 0.4).plan.budget.kind is None
