from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from children import Child
from searches import search

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.objective import MOST, WORST_SHARES, Objective
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search.encoding import canonical
from tpcal.planner.search.ledger import open_study
from tpcal.planner.search.pruning import ERROR_RATE, BestPruner
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.storage import open_storage
from tpcal.planner.search.trials import measure
from tpcal.plans.budget_projection import spent
from tpcal.plans.errors import BudgetError, GuardrailError, UsageError
from tpcal.plans.plan_file import dump_plan, load_preset, parse_plan, presets
from tpcal.plans.plan_records import Cut


def test_the_plan_is_the_best_measured_one_and_meets_the_budget(make_world, make_measurer) -> None:
    world = make_world(n_layers=12, n_tokens=144)
    measurer = make_measurer(world)
    found = search(world.profile(), 0.22, measurer=measurer, n_trials=40, command="tpcal plan")
    plan = found.plan
    assert 0 <= 0.22 * 144 * 12 - spent(plan.cuts, 144, 12) <= 12
    full = [t for t in found.trials if t.outcome == "measured"]
    best = Objective().of(plan.loss.measured)
    assert best == pytest.approx(min(t.loss for t in full), abs=1e-6)
    true = np.minimum(world.loss(plan.cuts), MOST)
    for g, group in enumerate(world.groups):
        mean = true[world.sample_group == g].mean()
        assert plan.loss.measured[group] == pytest.approx(mean, abs=1e-6)
    assert plan.budget.target == 0.22
    assert plan.budget.reached == pytest.approx(plan.cost.layer_average_keep, abs=1e-6)
    assert plan.cost.prefill_ms < plan.cost.unpruned_prefill_ms
    wanted = {
        "tpcal",
        "libraries",
        "profile",
        "data",
        "seed",
        "sampler",
        "study",
        "command",
        "time",
    }
    assert wanted <= set(plan.provenance)
    assert parse_plan(dump_plan(plan)) == plan


def test_every_published_schedule_is_measured_on_the_budget(make_world, make_measurer) -> None:
    world = make_world(n_layers=12, n_tokens=144)
    measurer = make_measurer(world)
    search(world.profile(), 0.22, measurer=measurer, n_trials=40)
    selectors = {c.selector for cuts in measurer.seen for c in cuts}
    published = {c.selector for name in presets() for c in load_preset(name).cuts}
    assert published <= selectors | {None}


def test_no_plan_is_measured_twice(make_world, make_measurer) -> None:
    measurer = make_measurer(make_world())
    found = search(measurer.world.profile(), 0.3, measurer=measurer, n_trials=30)
    assert len(measurer.seen) == len({str(cuts) for cuts in measurer.seen}) == 30
    assert sum(t.outcome != "repeat" for t in found.trials) == 30


def test_searching_beats_the_prediction_where_cuts_interact(make_world, make_measurer) -> None:
    gains = []
    for seed in range(3):
        world = make_world(n_layers=12, n_tokens=64, seed=seed)
        world.interaction = 3.0
        profile, measurer = world.profile(), make_measurer(world)
        predicted = search(profile, 0.22).plan
        found = search(profile, 0.22, measurer=measurer, n_trials=25).plan
        lost = np.minimum(world.loss(predicted.cuts), MOST)
        means = {g: lost[world.sample_group == i].mean() for i, g in enumerate(world.groups)}
        gains.append(Objective().of(means) - Objective().of(found.loss.measured))
    assert min(gains) >= -1e-6
    assert max(gains) > 0


@pytest.fixture(scope="module")
def stopping():
    """A search that stops plans early: its world, measurer and result."""
    from tests.planner.conftest import FakeMeasurer, World

    world = World(12, 144, 3, 120, seed=0)
    measurer = FakeMeasurer(world)
    return world, measurer, search(world.profile(), 0.22, measurer=measurer, n_trials=40)


def test_early_stopping_saves_samples_and_stopped_plans_are_never_chosen(stopping) -> None:
    _, measurer, found = stopping
    assert measurer.n_measured < 0.9 * 40 * 120
    stopped = [t for t in found.trials if t.outcome == "stopped"]
    assert stopped
    assert min(t.loss for t in stopped) > Objective().of(found.plan.loss.measured) - 1e-6
    assert found.plan.cuts not in [t.cuts for t in stopped]


def test_stopped_plans_were_in_fact_worse(stopping) -> None:
    world, _, found = stopping
    best = Objective().of(found.plan.loss.measured)
    wrong = 0
    for trial in found.trials:
        losses = np.minimum(world.loss(trial.cuts), MOST)
        true = Objective().of({g: losses[world.sample_group == g].mean() for g in range(3)})
        wrong += trial.outcome == "stopped" and true < best - 1e-9
    assert wrong == 0


def test_the_same_seed_gives_the_same_plan_and_another_seed_other_trials(
    make_world, make_measurer
) -> None:
    world = make_world()
    profile = world.profile()
    runs = [
        search(profile, 0.3, measurer=make_measurer(world), n_trials=35, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert runs[0].trials == runs[1].trials
    assert runs[0].plan.cuts == runs[1].plan.cuts
    assert runs[0].trials != runs[2].trials


@pytest.mark.parametrize("dies_after", [20, pytest.param(400, marks=pytest.mark.nightly)])
def test_an_interrupted_search_goes_on_to_the_same_plan(
    make_world, make_measurer, tmp_path, dies_after
) -> None:
    world = make_world(n_samples=32)
    profile, whole = world.profile(), make_measurer(world)
    once = search(profile, 0.3, measurer=whole, n_trials=24)
    assert whole.n_measured > dies_after
    storage = tmp_path / "deep" / "search.log"
    broken = make_measurer(world, dies_after=dies_after)
    with pytest.raises(KeyboardInterrupt):
        search(profile, 0.3, measurer=broken, n_trials=24, storage=storage)
    resumed = make_measurer(world)
    again = search(profile, 0.3, measurer=resumed, n_trials=24, storage=storage)
    assert again.trials == once.trials
    assert again.plan.cuts == once.plan.cuts
    assert again.plan.loss == once.plan.loss
    assert resumed.n_plans + broken.n_plans == whole.n_plans + 1  # only the broken trial is redone
    idle = make_measurer(world)
    assert (
        search(profile, 0.3, measurer=idle, n_trials=24, storage=storage).plan.cuts
        == once.plan.cuts
    )
    assert idle.n_plans == 0


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from benchmarks.generated_world import FakeMeasurer, World
from searches import search
from tpcal.planner.prediction.objective import MOST, Objective

class Dying(FakeMeasurer):
    def losses(self, cuts):
        for batch in super().losses(cuts):
            if self.n_measured > 300:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

world = World(8, 36, 3, 48, 0)
search(world.profile(), 0.3, measurer=Dying(world), n_trials=25, storage=sys.argv[1])
"""


def test_a_killed_search_goes_on_to_the_same_plan(make_world, make_measurer, tmp_path) -> None:
    storage = tmp_path / "search.log"
    tests = map(str, Path(__file__).parents[1:3])
    with Child(KILLED, storage, *tests) as child:
        assert child.wait() == -signal.SIGKILL
    with storage.open("ab") as file:
        file.write(b'{"op_code":8,"half a li')
    world = make_world()
    once = search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=25)
    again = search(
        world.profile(), 0.3, measurer=make_measurer(world), n_trials=25, storage=storage
    )
    assert again.trials == once.trials


def test_more_trials_continue_the_study(make_world, make_measurer, tmp_path) -> None:
    world, storage = make_world(), tmp_path / "search.log"
    first, second = make_measurer(world), make_measurer(world)
    search(world.profile(), 0.3, measurer=first, n_trials=10, storage=storage)
    found = search(world.profile(), 0.3, measurer=second, n_trials=15, storage=storage)
    assert (first.n_plans, second.n_plans) == (10, 5)
    assert sum(t.outcome != "repeat" for t in found.trials) == 15


def test_the_front_holds_the_plans_of_every_budget(make_world, make_measurer, tmp_path) -> None:
    world, storage = make_world(), tmp_path / "search.log"
    for budget in (0.2, 0.4, 0.6):
        found = search(
            world.profile(), budget, measurer=make_measurer(world), n_trials=8, storage=storage
        )
    costs = [p.layer_average_keep for p in found.front]
    assert min(costs) < 0.21
    assert max(costs) > 0.55
    assert all(p.measured for p in found.front)


def test_the_sampler_searches_alone_and_repeats_itself(
    make_world, make_measurer, monkeypatch
) -> None:
    monkeypatch.setattr("tpcal.planner.search.run.proposals", lambda *_: [])
    world = make_world(n_samples=12)

    def run():
        return search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=40)

    assert run().trials == run().trials


def test_an_unknown_weight_is_one_clear_line(make_world) -> None:
    world = make_world()
    with pytest.raises(UsageError, match="Weights must be of group0"):
        search(world.profile(), 0.3, objective=Objective({"reading": 2}))


def test_a_weighed_group_loses_less(make_world, make_measurer) -> None:
    world = make_world(seed=3)
    even = search(world.profile(), 0.2).plan.loss.predicted
    lightest = min(even, key=even.get)
    heavy = search(world.profile(), 0.2, objective=Objective({lightest: 20})).plan.loss.predicted
    assert heavy[lightest] < even[lightest]


def test_each_objective_is_what_its_search_minimises(make_world) -> None:
    world = make_world(seed=3)
    found = {
        name: search(world.profile(), 0.2, objective=Objective(name=name)).plan.loss.predicted
        for name in WORST_SHARES
    }
    assert found["mean"] != found["worst"]
    for name in WORST_SHARES:
        values = {other: Objective(name=name).of(losses) for other, losses in found.items()}
        assert values[name] <= min(values.values()) + 1e-9


def test_a_search_starts_from_what_other_budgets_measured(
    make_world, make_measurer, tmp_path
) -> None:
    world, storage = make_world(), tmp_path / "search.log"
    best = search(
        world.profile(), 0.3, measurer=make_measurer(world), n_trials=25, storage=storage
    ).plan
    near = make_measurer(world)
    search(world.profile(), 0.32, measurer=near, n_trials=3, storage=storage)
    moved = fill(Predictor(world.profile()), best.cuts, Budget(0.32))
    assert tuple(map(canonical, moved)) in near.seen


def test_a_database_works_as_storage(make_world, make_measurer, tmp_path) -> None:
    world, url = make_world(n_samples=12), f"sqlite:///{tmp_path}/search.db"
    found = search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=4, storage=url)
    idle = make_measurer(world)
    assert (
        search(world.profile(), 0.3, measurer=idle, n_trials=4, storage=url).trials == found.trials
    )
    assert idle.n_plans == 0


def test_without_a_measurer_the_prediction_decides(make_world) -> None:
    found = search(make_world().profile(), 0.22)
    assert found.plan.loss.predicted
    assert not found.plan.loss.measured
    assert not any(p.measured for p in found.front)
    assert len(found.front) > 5
    assert found.trials == ()


def test_a_timeout_starts_no_further_trial(make_world, make_measurer) -> None:
    measurer = make_measurer(make_world())
    with pytest.warns(UserWarning, match="time of --timeout was over.* continues it"):
        found = search(measurer.world.profile(), 0.3, measurer=measurer, timeout=0)
    assert measurer.n_plans == 0
    assert found.plan.cuts == search(measurer.world.profile(), 0.3).plan.cuts


def test_progress_is_reported_up_to_the_end(make_world, make_measurer) -> None:
    calls = []
    world = make_world()
    search(
        world.profile(),
        0.3,
        measurer=make_measurer(world),
        n_trials=3,
        progress=lambda done, total, what: calls.append((done, total, what)),
    )
    assert calls == [(i, 3, "trials") for i in range(4)]


def test_a_budget_of_one_needs_no_trials(make_world, make_measurer) -> None:
    measurer = make_measurer(make_world())
    found = search(measurer.world.profile(), 1, measurer=measurer)
    assert found.plan.cuts == ()
    assert measurer.n_plans == 0


@pytest.mark.parametrize("budget", [0, -1, 1.5, math.nan])
def test_a_bad_budget_is_refused_before_anything_runs(make_world, make_measurer, budget) -> None:
    measurer = make_measurer(make_world())
    with pytest.raises(UsageError, match=r"budget must be in \(0, 1\]; got "):
        search(measurer.world.profile(), budget, measurer=measurer)
    assert measurer.n_plans == 0


def test_an_infeasible_budget_names_the_reachable_minimum(make_world) -> None:
    profile = make_world().profile(layers=(4, 6))
    with pytest.raises(BudgetError) as error:
        search(profile, 0.22)
    assert 0.5 < error.value.reachable < 0.6
    search(profile, error.value.reachable)


def test_a_plan_that_loses_too_much_is_refused(make_world, make_measurer) -> None:
    world = make_world()
    with pytest.raises(
        GuardrailError, match=r"worst group must lose at most 0\.01 nats; got .*predicted"
    ):
        search(world.profile(), 0.22, max_loss=0.01)
    with pytest.raises(GuardrailError, match=r"\(measured\) on group\d"):
        search(world.profile(), 0.22, measurer=make_measurer(world), n_trials=3, max_loss=0.01)
    search(world.profile(), 0.22, max_loss=10)


@pytest.mark.parametrize("content", [b"no journal\n", b'{"op_code": 99}\n', b"\x00\xff\n"])
def test_a_damaged_storage_is_one_clear_line(make_world, make_measurer, tmp_path, content) -> None:
    path = tmp_path / "search.log"
    path.write_bytes(content)
    world = make_world()
    with pytest.raises(UsageError, match="must be an Optuna journal"):
        search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=2, storage=path)


def test_a_storage_that_cannot_be_written_is_one_clear_line(
    make_world, make_measurer, tmp_path
) -> None:
    world = make_world()
    (tmp_path / "file").write_text("")
    for storage in (tmp_path, tmp_path / "file" / "search.log", "nosuch://host/db"):
        with pytest.raises(UsageError, match="^storage must be"):
            search(
                world.profile(), 0.3, measurer=make_measurer(world), n_trials=2, storage=storage
            )


def test_nothing_is_printed(make_world, make_measurer, capfd) -> None:
    world = make_world()
    search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=14)
    assert capfd.readouterr() == ("", "")


def study_with_best(losses: dict[int, float], groups: np.ndarray) -> optuna.Study:
    study = open_study(open_storage(None), "test", RepeatableTPE(0))
    study.pruner = BestPruner(groups, ("a", "b"), Objective(), n_best=1)
    tell_measured(study, losses, groups)
    return study


def tell_measured(study: optuna.Study, losses: dict[int, float], groups: np.ndarray) -> None:
    trial = study.ask()
    for sample, loss in losses.items():
        trial.report(loss, sample)
    trial.set_user_attr("outcome", "measured")
    means = [np.mean([losses[s] for s in losses if groups[s] == g]) for g in (0, 1)]
    study.tell(trial, float(Objective().values(means, ("a", "b"))))


def test_a_trial_that_is_better_where_it_counts_goes_on_though_most_samples_are_worse() -> None:
    groups = np.arange(40) % 2
    study = study_with_best({s: 0.1 + 0.9 * (s % 2) for s in range(40)}, groups)
    trial = study.ask()
    for sample in range(30):  # group 0 loses more than the best does, group 1 less
        trial.report(0.5, sample)
    assert not trial.should_prune()


def test_a_trial_worse_by_ranks_and_by_the_objective_is_stopped() -> None:
    groups = np.arange(40) % 2
    study = study_with_best({s: 0.1 + 0.9 * (s % 2) for s in range(40)}, groups)
    trial = study.ask()
    for sample in range(16):
        trial.report(0.1 + 1.1 * (sample % 2), sample)
    assert trial.should_prune()


def test_at_most_the_stated_share_of_plans_like_the_best_one_is_stopped() -> None:
    rng, n, batch, n_plans = np.random.default_rng(0), 126, 16, 60
    stopped = 0
    for _ in range(n_plans):
        ours, best = rng.lognormal(-2.0, 1.5, (2, n)).clip(0.0, MOST).tolist()
        pruner = BestPruner(np.arange(n) % 2, ("a", "b"), Objective())
        stopped += any(
            pruner.is_likely_worse(dict(enumerate(ours[:end])), dict(enumerate(best)), batch)
            for end in range(batch, n, batch)
        )
    assert stopped <= ERROR_RATE * n_plans  # 3; with p < 0.05 after every batch it was 8


def test_no_trial_is_stopped_before_every_group_was_seen() -> None:
    groups = np.repeat([0, 1], 30)
    study = study_with_best(dict.fromkeys(range(60), 0.5), groups)
    trial = study.ask()
    for sample in range(
        30
    ):  # at least (0.6 + 3 * 0.6 / 2) / 4, so it may still become the best one
        trial.report(0.6, sample)
    assert not trial.should_prune()
    trial.report(0.6, 30)
    assert trial.should_prune()


def test_a_trial_that_lost_more_already_than_the_best_in_all_is_stopped_at_once() -> None:
    groups = np.arange(40) % 2
    study = study_with_best(dict.fromkeys(range(40), 0.5), groups)
    trial = study.ask()
    for sample in (
        0,
        2,
        4,
        6,
    ):  # 4 x 5 over 20 samples of a group: (1.0 + 3 * 1.0 / 2) / 4 at least
        trial.report(5.0, sample)
    assert trial.should_prune()


def test_a_trial_is_compared_with_the_last_of_the_best_plans_and_not_with_a_lucky_one() -> None:
    groups = np.arange(40) % 2
    study = study_with_best(dict.fromkeys(range(40), 0.1), groups)
    study.pruner = pruner = BestPruner(groups, ("a", "b"), Objective(), n_best=3)
    usual, trial = dict.fromkeys(range(40), 0.4), study.ask()
    for sample in range(30):
        trial.report(0.3, sample)
    tell_measured(study, usual, groups)
    assert not trial.should_prune()  # whatever it loses, it may be one of the best three
    tell_measured(study, usual, groups)
    assert not trial.should_prune()
    worse = study.ask()
    for sample in range(30):
        worse.report(0.5, sample)
    assert worse.should_prune()
    assert pruner.estimate(study, dict.fromkeys(range(30), 0.5)) == pytest.approx(0.5)


def test_one_lost_sample_does_not_make_a_group_the_worst(make_world, make_measurer) -> None:
    class Spiky(make_measurer):
        def losses(self, cuts):
            for at, losses, flips in super().losses(cuts):
                yield at, np.where(at == 0, 50.0, losses * 0), flips

    measurer = Spiky(make_world(n_samples=48))
    study = optuna.create_study()
    trial = study.ask()
    study.pruner = BestPruner(measurer.sample_group, measurer.groups, Objective())
    loss = measure(trial, measurer, [Cut(2, 0.5, "grid")], study.pruner, Objective())
    assert loss == pytest.approx((MOST / 16 + 3 * MOST / 48) / 4)


def test_machines_share_a_search_for_milliseconds_only_if_their_times_are_the_same(
    make_world, make_measurer, tmp_path: Path
) -> None:
    fast, measurer = make_world().profile(), make_measurer(make_world())
    slow = replace(fast, layer_ms=tuple((n, 1.05 * ms) for n, ms in fast.layer_ms))
    alike = replace(fast, layer_ms=tuple((n, ms + 1e-9) for n, ms in fast.layer_ms))  # as its file
    assert slow.digest == alike.digest == fast.digest
    given = {"measurer": measurer, "n_trials": 2, "storage": tmp_path / "study"}
    found = [search(profile, Budget(10.5, "ms"), **given) for profile in (fast, alike, slow)]
    assert [result.plan.cost.prefill_ms <= 10.5 for result in found] == [True] * 3
    assert found[0].study == found[1].study != found[2].study
    shares = [search(profile, Budget(0.5, "kv"), **given) for profile in (fast, slow)]
    assert shares[0].study == shares[1].study
