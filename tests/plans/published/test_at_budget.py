"""Published schedules on budgets that are not their own."""

from __future__ import annotations

import itertools

import pytest

from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.plan_file import dump_plan, load_preset, parse_plan, presets
from tpcal.plans.published.at_budget import at_budget, on_budget
from tpcal.plans.selectors import min_layer

SIZES = [(8, 36), (28, 1000), (32, 576)]


@pytest.mark.parametrize(("n_layers", "n_tokens"), SIZES)
@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("target", [0.1, 0.22, 0.35, 0.5, 0.9])
def test_a_preset_meets_any_budget_with_its_own_selectors(name, target, n_layers, n_tokens):
    with pytest.raises(BudgetError) as caught:
        at_budget(name, 1e-6, n_layers, n_tokens)
    target = max(target, caught.value.reachable)
    plan = at_budget(name, target, n_layers, n_tokens)
    step = 1 / n_layers if name == "vtw" else 1 / n_tokens  # vtw has nothing but its layer
    spent = sum(plan.schedule(n_tokens, n_layers)) / (n_tokens * n_layers)
    assert target - step - 1e-9 < spent <= target + 1e-9
    assert plan.budget.reached == pytest.approx(spent, abs=1e-6)
    own = [(cut.selector, cut.params) for cut in load_preset(name).cuts]
    for cut in plan.cuts:
        assert (cut.selector, cut.params) in own
        assert cut.selector is None or cut.layer >= min_layer(cut.selector, cut.params)
    layers = [cut.layer for cut in plan.cuts]
    assert layers == sorted(set(layers))
    assert parse_plan(dump_plan(plan)) == plan


def test_layers_stay_where_a_quarter_of_the_keeps_meets_the_budget():
    # 2 of 32 layers in full, the other 30 with k: (2 + 30 k) / 32 = 0.3, so k = 0.2533
    plan = at_budget("fastv", 0.3, 32, 576)
    (cut,) = plan.cuts
    assert (cut.layer, cut.keep) == (2, pytest.approx(0.2533, abs=1 / 576))
    assert plan.name == "fastv@0.3"
    assert "layer:keep 2:0.5 became 2:0.25" in plan.source


def test_layers_move_up_together_where_the_keeps_would_shrink_below_a_quarter():
    # A quarter of the keeps costs f + f (1/8 + 1/16) + (32 - 3 f) / 32 layers from layer f on:
    # 7.47 of them at f = 6, 6.47 at f = 5; the budget is 0.22 * 32 = 7.04.
    plan = at_budget("pyramiddrop", 0.22, 32, 576)
    assert [cut.layer for cut in plan.cuts] == [5, 10, 15]
    keeps = [cut.keep for cut in plan.cuts]
    for a, b in itertools.pairwise(keeps):
        assert a / b == pytest.approx(2, rel=0.05)
    # s (5 * 0.5 + 5 * 0.25 + 17 * 0.125) = 2.04
    assert keeps[0] == pytest.approx(0.5 * 2.04 / 5.875, abs=2 / 576)


def test_attention_needs_one_layer_and_says_so():
    with pytest.raises(
        BudgetError, match=r"at least 0\.1494 on 8 layers, as attention reads"
    ) as caught:
        at_budget("fastv", 0.1, 8, 36)
    assert caught.value.reachable == pytest.approx((36 + 7) / (8 * 36), abs=1e-4)
    assert at_budget("divprune", 0.1, 8, 36).cuts[0].layer == 0


def test_a_schedule_that_only_drops_all_moves_its_layer():
    assert [cut.layer for cut in at_budget("vtw", 0.22, 32).cuts] == [7]
    assert at_budget("vtw", 0.22, 32).budget.reached == 7 / 32
    with pytest.raises(BudgetError, match="drops all tokens at once"):
        at_budget("vtw", 0.1, 8)


def test_a_conditional_cut_stays():
    plan = at_budget("todre-10", 0.22, 32)
    assert [cut.layer for cut in plan.cuts] == [0, 29]
    assert plan.cuts[1] == load_preset("todre-10").cuts[1]


def test_all_tokens_are_no_cut():
    assert at_budget("fastv", 1.0, 32).cuts == ()


@pytest.mark.parametrize("target", [0.0, 1.5, float("nan")])
def test_a_budget_is_a_share(target):
    with pytest.raises(UsageError, match=r"budget must be in \(0, 1\]"):
        at_budget("fastv", target, 32)


def test_an_unknown_preset_is_named():
    with pytest.raises(UsageError, match="No preset is called 'fastw'. Known: btp"):
        at_budget("fastw", 0.2, 32)


@pytest.mark.parametrize("name", ["btp-llava-released", "fastv", "vtw", "divprune"])
def test_layers_that_are_not_moved_first_give_the_printed_ones(name):
    scaled = load_preset(name, 8)
    assert on_budget(scaled, 0.5, 8, 36) == at_budget(name, 0.5, 8, 36)
    printed = on_budget(load_preset(name), 0.25, 30, 576)
    if name != "vtw":  # which meets a budget by its layer alone
        assert [c.layer for c in printed.cuts] == [c.layer for c in load_preset(name).cuts]
    assert printed.model.n_layers == 30
