"""The whole front, and plans answered from it without a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from click import Option
from searches import answer, search, search_front

from tpcal.commands.plan import plan
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.problem import Problem
from tpcal.planner.search.front import BUDGETS
from tpcal.planner.search.ledger import Ledger, mark_of_whole_front
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.whole_front import FEWEST_TRIALS, is_searched
from tpcal.plans.plan_records import OWN


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A world whose whole front was searched: profile, journal, front."""
    from tests.planner.conftest import FakeMeasurer, World

    world = World(8, 36, 2, 24, seed=0)
    profile, journal = world.profile(), tmp_path_factory.mktemp("front") / "study.journal"
    measurer = FakeMeasurer(world)
    told = []
    points = search_front(
        profile,
        measurer=measurer,
        n_trials=150,
        storage=journal,
        progress=lambda done, total, what: told.append((done, total)),
    )
    return world, profile, journal, points, told


def test_the_front_spans_all_budgets_under_one_bar(searched):
    _, _, _, points, told = searched
    costs = [point.layer_average_keep for point in points]
    assert costs[0] < 0.16
    assert costs[-1] > 0.6
    assert all(a.loss > b.loss for a, b in itertools.pairwise(points))
    assert {total for _, total in told} == {told[-1][1]}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


def test_a_budget_between_is_answered_without_a_model(searched):
    world, profile, journal, points, _ = searched
    found = answer(profile, Budget(0.26), journal)
    assert found is not None
    assert found.plan.budget.target == 0.26
    assert found.plan.budget.reached <= 0.26
    assert found.plan.provenance["n_trials"] == found.n_measured >= 12
    assert found.plan.provenance.get("measured_on") == (OWN if found.measured else None)
    assert bool(found.plan.loss.measured) == found.measured
    # The world's own verdict: not far from the measured plans that cost less and more.
    around = [p.loss for p in points if p.layer_average_keep <= 0.26]
    losses = world.loss(found.plan.cuts)
    groups = [min(1, float(losses[world.sample_group == g].mean())) for g in (0, 1)]
    assert Objective().values(groups, world.groups) <= 1.25 * min(around)


def test_a_front_that_ran_out_of_time_does_not_count_as_searched(
    make_world, make_measurer, tmp_path
):
    world, journal = make_world(), tmp_path / "study.journal"
    with pytest.warns(UserWarning, match="time of --timeout was over"):
        search_front(world.profile(), measurer=make_measurer(world), timeout=0, storage=journal)
    assert answer(world.profile(), Budget(0.26), journal) is None


def test_two_interrupted_fronts_do_not_make_a_searched_one(make_world):
    profile = make_world().profile()
    predictor, ledger = Problem.of(profile).predictor, Ledger.open(None, profile)
    reachable = [budget for budget in BUDGETS if budget >= predictor.limits.least]
    assert len(reachable) >= 6

    def search_some(budgets: Sequence[float], seed: int) -> None:
        for budget in budgets:
            study = ledger.start(profile, Budget(budget).label, seed, [], RepeatableTPE(seed))
            mark_of_whole_front(study)

    for seed in (0, 1):
        search_some(reachable[:5], seed)
        assert not is_searched(predictor, ledger)
    search_some(reachable[5:], 1)
    assert is_searched(predictor, ledger)


def test_the_help_says_how_many_plans_a_front_measures_at_least():
    options = {option.name: option.help for option in plan.params if isinstance(option, Option)}
    assert f"with {FEWEST_TRIALS} or more for each" in options["n_trials"]


def test_searches_of_single_budgets_are_no_answer(make_world, make_measurer, tmp_path):
    world = make_world(n_groups=2, n_samples=24)
    profile, journal = world.profile(), tmp_path / "study.journal"
    assert answer(profile, Budget(0.2), journal) is None
    search(profile, 0.5, measurer=make_measurer(world), n_trials=20, storage=journal)
    assert answer(profile, Budget(0.2), journal) is None
    search(profile, 0.3, measurer=make_measurer(world), n_trials=20, storage=journal)
    assert answer(profile, Budget(0.4), journal) is None  # though between two
    assert answer(profile, Budget(0.3), journal) is None  # a study of its own, which goes on
