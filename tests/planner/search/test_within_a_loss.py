"""The cheapest plan within limits, on worlds whose losses are known."""

from __future__ import annotations

import numpy as np
import pytest
from searches import cheapest, explore, search

from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.problem import Problem
from tpcal.planner.search.bracketing import Bracket
from tpcal.planner.search.front import average
from tpcal.planner.search.loss_limits import LossLimits
from tpcal.planner.search.trials import MOST
from tpcal.plans.errors import GuardrailError, RunFailed, UsageError
from tpcal.plans.plan_file import dump_plan, parse_plan

LIMIT = LossLimits(max_loss=0.1)


def _worst(world, cuts) -> float:
    losses = np.minimum(world.loss(cuts), MOST)
    return max(losses[world.sample_group == g].mean() for g in range(len(world.groups)))


def _cost(plan) -> float:
    return plan.cost.layer_average_keep


@pytest.fixture
def world(make_world):
    return make_world(n_layers=8, n_tokens=64, n_samples=36)


def test_it_is_within_and_what_is_clearly_cheaper_is_not(world, make_measurer) -> None:
    measurer = make_measurer(world)
    plan = cheapest(world.profile(), LIMIT, measurer=measurer, n_trials=30)
    assert _worst(world, plan.cuts) <= 0.1
    assert max(plan.loss.measured.values()) == pytest.approx(_worst(world, plan.cuts), abs=1e-6)
    assert measurer.n_plans <= 30
    cheaper = search(world.profile(), _cost(plan) - 0.03, measurer=measurer, n_trials=30).plan
    assert max(cheaper.loss.measured.values()) > 0.1


def test_the_plan_names_its_limits_and_no_budget(world, make_measurer) -> None:
    plan = cheapest(
        world.profile(), LIMIT, measurer=make_measurer(world), n_trials=12, command="x"
    )
    assert (plan.budget, plan.loss.max_loss, plan.loss.max_flips) == (None, 0.1, None)
    assert plan.provenance["command"] == "x"
    assert plan.provenance["study"]
    assert parse_plan(dump_plan(plan)) == plan


def test_more_loss_buys_a_cheaper_plan_and_flips_are_a_limit_too(world, make_measurer) -> None:
    profile, given = world.profile(), {"n_trials": 15, "max_cuts": 2}
    costs = [
        _cost(cheapest(profile, LossLimits(max_loss=x), measurer=make_measurer(world), **given))
        for x in (0.02, 0.1, 0.4)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    few = LossLimits(max_flips=0.1)
    plan = cheapest(profile, few, measurer=make_measurer(world), **given)
    assert np.minimum(world.loss(plan.cuts), 1).mean() <= 0.1


def test_the_same_seed_gives_the_same_plan_interrupted_or_not(
    world, make_measurer, tmp_path
) -> None:
    profile, whole = world.profile(), make_measurer(world)
    once = cheapest(profile, LIMIT, measurer=whole, n_trials=24, max_cuts=2)
    journal = tmp_path / "study.journal"
    for dies_after in (100, 400):
        broken = make_measurer(world, dies_after=dies_after)
        assert whole.n_measured > dies_after
        with pytest.raises(KeyboardInterrupt):
            cheapest(profile, LIMIT, measurer=broken, n_trials=24, max_cuts=2, storage=journal)
    again = cheapest(
        profile, LIMIT, measurer=make_measurer(world), n_trials=24, max_cuts=2, storage=journal
    )
    assert (again.cuts, again.loss) == (once.cuts, once.loss)
    idle = make_measurer(world)
    assert (
        cheapest(profile, LIMIT, measurer=idle, n_trials=24, max_cuts=2, storage=journal).cuts
        == once.cuts
    )
    assert idle.n_plans == 0


def test_plans_that_other_searches_measured_count(world, make_measurer, tmp_path) -> None:
    profile, journal, measurer = world.profile(), tmp_path / "study.journal", make_measurer(world)
    tried = [
        trial
        for budget in (0.2, 0.3, 0.4)
        for trial in search(profile, budget, measurer=measurer, n_trials=8, storage=journal).trials
        if trial.outcome == "measured"
    ]
    limit = LossLimits(max_loss=min(max(t.measured.values()) for t in tried) * 1.01)
    plan = cheapest(profile, limit, measurer=measurer, n_trials=6, storage=journal)
    within = [t for t in tried if max(t.measured.values()) <= limit.max_loss]
    costs = [average(Predictor(profile), t.cuts) for t in within]
    assert _cost(plan) <= min(costs) + 1e-9


def test_trials_and_their_progress_add_up(world, make_measurer) -> None:
    told = []
    measurer = make_measurer(world)
    cheapest(
        world.profile(),
        LIMIT,
        measurer=measurer,
        n_trials=17,
        progress=lambda *state: told.append(state),
    )
    assert {total for _, total, _ in told} == {17}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][0] >= measurer.n_plans
    assert measurer.n_plans <= 17


def test_plans_of_more_cuts_that_other_searches_measured_do_not_count(
    world, make_measurer, tmp_path
) -> None:
    profile, journal, measurer = world.profile(), tmp_path / "study.journal", make_measurer(world)
    known = {"measurer": measurer, "storage": journal}
    free = cheapest(profile, LIMIT, n_trials=24, max_cuts=4, **known)
    assert len(free.cuts) > 1
    assert len(cheapest(profile, LIMIT, n_trials=12, max_cuts=1, **known).cuts) == 1


def test_further_samples_have_to_agree(world, make_measurer) -> None:
    class Harsher(type(make_measurer(world))):
        def losses(self, cuts):
            for at, losses, flips in super().losses(cuts):
                yield at, losses * 1.5, flips

    profile = world.profile()
    first = cheapest(profile, LIMIT, measurer=make_measurer(world), n_trials=30)
    both = cheapest(
        profile, LIMIT, measurer=make_measurer(world), finals=Harsher(world), n_trials=30
    )
    assert max(both.loss.measured.values()) <= 0.1  # as the further samples have it
    assert _worst(world, both.cuts) <= 0.1 / 1.5 + 1e-9 < _worst(world, first.cuts)
    assert _cost(both) > _cost(first)


def test_nothing_measured_and_nothing_within_exit_with_a_way_out(world, make_measurer) -> None:
    profile = world.profile()
    with (
        pytest.warns(UserWarning, match="time of --timeout was over"),
        pytest.raises(GuardrailError, match="none was measured in time. Raise --timeout"),
    ):
        cheapest(profile, LIMIT, measurer=make_measurer(world), timeout=0)
    with pytest.raises(GuardrailError, match=r"times the limit .*Raise the limit or --trials"):
        cheapest(profile, LossLimits(1e-9), measurer=make_measurer(world), n_trials=6)
    with pytest.raises(UsageError, match="got neither"):
        cheapest(profile, LossLimits(), measurer=make_measurer(world))


def test_without_a_model_the_prediction_decides(world) -> None:
    profile = world.profile()
    predictor = Predictor(profile)
    plan = cheapest(profile, LIMIT)
    assert 0 < max(plan.loss.predicted.values()) <= 0.1
    assert not plan.loss.measured
    cheaper = search(profile, _cost(plan) - 0.02).plan
    assert max(predictor.loss(cheaper.cuts).values()) > 0.1


def test_where_nothing_may_be_lost_only_the_unpruned_model_is_left(world, make_measurer) -> None:
    measurer = make_measurer(world)
    plan = cheapest(world.profile(), LossLimits(max_loss=0), measurer=measurer)
    assert (plan.cuts, plan.loss.max_loss, measurer.n_plans) == ((), 0, 0)


def test_the_row_of_a_proof_falls_in_cost_and_rises_in_loss(world, make_measurer) -> None:
    found = explore(world.profile(), LIMIT, measurer=make_measurer(world), n_trials=30)
    row = found.row(4)
    assert len(row) == min(4, len(found.trials))
    assert row[-1].cuts == found.plan(0).cuts
    assert [_cost(p) for p in row] == sorted((_cost(p) for p in row), reverse=True)
    worst = [max(p.loss.measured.values()) for p in row]
    assert worst == sorted(worst)
    assert worst[-1] <= 0.1
    assert len(found.row(1)) == 1


def test_a_hunt_goes_up_where_too_much_is_lost_and_down_where_not(world) -> None:
    bracket = Bracket(Problem(Predictor(world.profile())), LIMIT, dict.fromkeys(world.groups, 12))
    first = bracket.next()
    plan = search(world.profile(), first).plan
    assert bracket.predicted(plan.cuts) == pytest.approx(1, rel=0.3)
    bracket.learn(first, plan.cuts, 2.0)
    assert (bracket.low, bracket.high) == (first, 1)
    second = bracket.next()
    assert second > first + 0.01
    cuts = search(world.profile(), second).plan.cuts
    bracket.learn(second, cuts, 0.1)
    assert (bracket.low, bracket.high) == (first, bracket.cost(cuts))
    assert first < bracket.next() < second


def test_losses_that_are_no_numbers_end_the_search(world, make_measurer) -> None:
    class Broken(type(make_measurer(world))):
        def losses(self, cuts):
            for at, losses, flips in super().losses(cuts):
                yield at, losses * np.nan, flips

    with pytest.raises(RunFailed, match="must be numbers; got nan"):
        cheapest(world.profile(), LIMIT, measurer=Broken(world), n_trials=6)
