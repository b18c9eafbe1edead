"""Conditional drops in the search: what they are expected to cost and to lose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from searches import search

from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget
from tpcal.planner.prediction.conditions import dropping, share
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search.encoding import Encoding, choices
from tpcal.plans.plan_records import Condition, Cut


@pytest.fixture
def profile(make_world):
    """Masses rise from sample to sample: 0/48, 1/48, …, at every layer."""
    found = make_world(n_layers=8, n_tokens=36).profile()
    masses = np.repeat(np.arange(48, dtype=np.float32)[:, None] / 48, 8, axis=1)
    return replace(found, text_to_visual=masses)


def test_a_threshold_fires_for_the_share_that_was_asked_for(profile) -> None:
    for wanted in (0.25, 0.5, 0.75):
        assert share(profile, dropping(profile, 5, wanted)) == pytest.approx(wanted, abs=1 / 48)
    assert dropping(profile, 5, 1.0) == Cut(5, 0.0)


def test_the_price_is_that_of_both_cases_by_their_shares(profile) -> None:
    predictor = Predictor(profile)
    plan = [Cut(0, 0.5, "grid"), dropping(profile, 4, 0.25)]
    part = share(profile, plan[1])
    # 18 of 36 tokens in 8 layers, or in 4 where the drop fires.
    expected = part * 0.25 + (1 - part) * 0.5
    assert predictor.prices.of(plan, LAYER_AVERAGE) == pytest.approx(expected)


def test_a_conditional_plan_meets_the_budget_in_expectation(profile) -> None:
    predictor = Predictor(profile)
    plan = fill(predictor, [Cut(0, 0.3, "grid"), dropping(profile, 4, 0.5)], Budget(0.3))
    assert plan[-1].condition is not None
    assert plan[0].keep > 0.35  # what the drop saves is spent on tokens
    price = predictor.prices.of(plan, LAYER_AVERAGE)
    assert 0.3 - 2 / 36 < price <= 0.3 + 1e-9


def test_a_condition_that_never_or_always_fires_is_none(profile) -> None:
    predictor = Predictor(profile)
    for threshold, drops in ((0.0, 0), (1.0, 0)):
        late = Cut(4, 0.0, condition=Condition(threshold))
        plan = fill(predictor, [Cut(0, 0.3, "grid"), late], Budget(0.3))
        assert sum(cut.condition is not None for cut in plan) == drops


def test_only_the_samples_it_fires_for_lose(profile) -> None:
    predictor = Predictor(profile)
    never, always = [Cut(0, 0.5, "grid")], [Cut(0, 0.5, "grid"), Cut(4, 0.0)]
    some = [Cut(0, 0.5, "grid"), dropping(profile, 4, 0.5)]
    low, middle, high = (predictor.losses(cuts) for cuts in (never, some, always))
    assert (low < middle).all()
    assert (middle < high).all()


def test_a_conditional_plan_survives_the_way_through_a_trial(profile) -> None:
    limits = Predictor(profile).limits
    encoding = Encoding(limits, choices([Cut(0, 0.5, "grid")]), profile)
    for wanted in (0.3, 0.6, 1.0):
        cuts = (Cut(1, 0.5, "grid"), dropping(profile, 5, wanted))
        again = encoding.decode(encoding.encode(cuts))
        assert again[0] == cuts[0]
        assert share(profile, again[1]) == pytest.approx(share(profile, cuts[1]), abs=1 / 48)


def test_a_search_tries_conditional_drops_and_keeps_them_over_a_restart(
    profile, make_world, make_measurer, tmp_path
) -> None:
    measurer, storage = make_measurer(make_world(n_layers=8, n_tokens=36)), tmp_path / "log"
    arguments = {"n_trials": 25, "storage": storage}
    found = search(profile, 0.3, measurer=measurer, **arguments)
    assert any(cut.condition is not None for cuts in measurer.seen for cut in cuts)
    idle = make_measurer(measurer.world)
    assert search(profile, 0.3, measurer=idle, **arguments).trials == found.trials
    assert idle.n_plans == 0
