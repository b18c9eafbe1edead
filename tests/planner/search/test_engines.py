"""Searches for plans that have to run in a serving engine."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from searches import search

from tpcal.planner.problem import Problem
from tpcal.planner.search import one_budget, whole_front
from tpcal.planner.search.ledger import Ledger
from tpcal.planner.search.settings import SearchSettings
from tpcal.plans.budget_projection import spent
from tpcal.plans.engines import EMBEDDINGS, VLLM
from tpcal.plans.errors import UsageError

_BEHIND = ("scores", "text_scores", "keys", "text")
FEW = replace(VLLM, most_block_tables=4, lacks={**VLLM.lacks, **dict.fromkeys(_BEHIND, "more")})
"""An engine for which plans of 12 layers cut before every third one, and that reads images only."""


def _search(world, measurer, n_trials=30, engine=FEW, storage=None, budget=0.3):
    problem = Problem.of(world.profile(), budget, engine=engine)
    settings = SearchSettings(n_trials, storage=storage)
    return one_budget.search(problem, measurer=measurer, settings=settings)


def test_every_measured_plan_runs_in_the_engine(make_world, make_measurer) -> None:
    world = make_world(n_layers=12)
    measurer = make_measurer(world)
    found = _search(world, measurer)
    assert found.plan.provenance["engine"] == "vllm"
    assert len(measurer.seen) == 30
    for cuts in measurer.seen:
        assert {cut.selector for cut in cuts} <= {"grid", "diversity", "pooling", "random", None}
        assert all(cut.layer % 3 == 0 for cut in cuts)
        assert 0.3 * 12 * 36 - 12 < spent(cuts, 36, 12) <= 0.3 * 12 * 36


@pytest.mark.parametrize("budget", [0.12, 0.5, 0.97])
def test_plans_for_embeddings_are_one_cut_before_the_decoder(
    make_world, make_measurer, budget
) -> None:
    world = make_world()
    measurer = make_measurer(world)
    found = _search(world, measurer, 12, EMBEDDINGS, budget=budget)
    assert len(measurer.seen) > 1
    for cuts in [*measurer.seen, found.plan.cuts]:
        assert [cut.layer for cut in cuts] == [0]
        assert budget - 1 / 36 < cuts[0].keep <= budget + 1e-4
        assert EMBEDDINGS.runs(cuts[0])


@pytest.mark.parametrize("budget", [0.12, 0.22, 0.5, 0.8, 0.97])
def test_budgets_are_met_at_the_layers_of_the_engine(make_world, budget) -> None:
    found = one_budget.search(Problem.of(make_world(n_layers=12).profile(), budget, engine=FEW))
    assert all(cut.layer % 3 == 0 for cut in found.plan.cuts)
    assert budget - 1 / 36 < found.plan.cost.layer_average_keep <= budget


def test_a_study_without_an_engine_keeps_its_name(make_world, make_measurer, tmp_path) -> None:
    world, storage = make_world(), tmp_path / "study"
    names = [
        search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=2).study,
        _search(world, make_measurer(world), 2, engine=None, storage=storage).study,
        _search(world, make_measurer(world), 2, engine=VLLM, storage=storage).study,
    ]
    assert names[0] == names[1] != names[2]
    known = optuna.get_all_study_names(Ledger.open(storage, world.profile()).storage)
    assert sorted(known) == sorted(names[1:])


def test_plans_of_other_searches_count_where_they_run(make_world, make_measurer, tmp_path) -> None:
    world, storage = make_world(n_layers=12), tmp_path / "study"
    _search(world, make_measurer(world), 20, engine=None, storage=storage)
    found = _search(world, make_measurer(world), 3, storage=storage)
    assert all(FEW.runs(cut) and cut.layer % 3 == 0 for p in found.front for cut in p.cuts)


def test_a_searched_front_answers_for_its_own_engine_only(
    make_world, make_measurer, tmp_path
) -> None:
    world, settings = make_world(n_layers=12), SearchSettings(18, storage=tmp_path / "study")
    problem = Problem.of(world.profile())
    whole_front.whole_front(problem, measurer=make_measurer(world), settings=settings)
    served = Problem.of(world.profile(), 0.25, engine=FEW)
    assert whole_front.answer(problem.at(0.25), settings) is not None
    assert whole_front.answer(served, settings) is None
    whole_front.whole_front(served, measurer=make_measurer(world), settings=settings)
    known = whole_front.answer(served, settings)
    assert known is not None
    assert all(FEW.runs(cut) and cut.layer % 3 == 0 for cut in known.plan.cuts)


def test_a_decoder_or_profile_that_cannot_be_cut_there_is_refused(make_world) -> None:
    profile = make_world().profile()
    windows = replace(profile.shape, kv_limits=(None, 4) * 4)
    with pytest.raises(UsageError, match=r"No plan for this model runs in vLLM\. Layers after"):
        Problem.of(replace(profile, shape=windows), engine=VLLM)
    other = [replace(p, selector=p.selector and "attention", params={}) for p in profile.probes]
    with pytest.raises(UsageError, match="probes of selectors that run in vLLM; got none"):
        Problem.of(replace(profile, probes=tuple(other)), engine=FEW)


def test_a_profile_that_merges_is_refused_where_the_engine_cannot(make_world) -> None:
    profile = make_world().profile()
    for engine in (VLLM, EMBEDDINGS):
        with pytest.raises(UsageError, match=r"No plan .* got proportional.*--merge mean\.$"):
            Problem.of(replace(profile, merge="proportional"), engine=engine)
        taken = Problem.of(replace(profile, merge="mean"), engine=engine)
        assert taken.profile.merge == "mean"
