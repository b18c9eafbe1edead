from __future__ import annotations

import numpy as np
import pytest
from searches import search

from tpcal.planner.prediction.objective import MOST, Objective
from tpcal.planner.search.finals import ROUNDS
from tpcal.planner.search.trials import measure_all
from tpcal.plans.plan_records import FURTHER, OWN, Cut


def means(world, cuts) -> dict[str, float]:
    lost = np.minimum(world.loss(cuts), MOST)
    return {g: lost[world.sample_group == i].mean() for i, g in enumerate(world.groups)}


def more_of(world, make_world, seed: int):
    """The same groups, other samples."""
    other = make_world(n_samples=96)
    other.sample = np.random.default_rng(seed).lognormal(0, 0.3, 96)
    return other


def test_finalists_are_measured_on_further_samples_and_the_plan_says_what_they_lost(
    make_world, make_measurer
) -> None:
    world = make_world()
    further = make_measurer(more_of(world, make_world, 5))
    found = search(
        world.profile(), 0.3, measurer=make_measurer(world), finals=further, n_trials=20
    )
    full = sorted((t for t in found.trials if t.outcome == "measured"), key=lambda t: t.loss)
    assert set(further.seen) == {t.cuts for t in full[: ROUNDS[0]]}
    for group, loss in means(further.world, found.plan.cuts).items():
        assert found.plan.loss.measured[group] == pytest.approx(loss, abs=1e-6)
        assert 0 < found.plan.loss.margin[group] < 0.2


def test_a_group_without_further_samples_has_the_loss_of_the_search(
    make_world, make_measurer
) -> None:
    world = make_world()
    fewer = more_of(world, make_world, 5)
    kept = fewer.sample_group != 0
    fewer.sample, fewer.sample_group = fewer.sample[kept], fewer.sample_group[kept]
    fewer.n_samples = int(kept.sum())
    found = search(
        world.profile(), 0.3, measurer=make_measurer(world), finals=make_measurer(fewer)
    )
    first, *others = world.groups
    own, further = (
        means(world, found.plan.cuts),
        means(more_of(world, make_world, 5), found.plan.cuts),
    )
    stated = found.plan.loss.measured
    assert list(stated) == list(world.groups)
    assert stated[first] == pytest.approx(own[first], abs=1e-6)
    assert [stated[g] for g in others] == pytest.approx([further[g] for g in others], abs=1e-6)
    assert found.plan.provenance["measured_on"] == FURTHER


def test_a_plan_says_if_its_loss_is_of_the_samples_that_chose_it(
    make_world, make_measurer
) -> None:
    world = make_world()
    found = search(world.profile(), 0.3, measurer=make_measurer(world), n_trials=4)
    assert found.plan.provenance["measured_on"] == OWN
    assert all(margin <= MOST for margin in found.plan.loss.margin.values())


def test_the_winner_is_best_over_all_samples(make_world, make_measurer) -> None:
    world = make_world()
    further = make_measurer(more_of(world, make_world, 6))
    found = search(
        world.profile(), 0.3, measurer=make_measurer(world), finals=further, n_trials=20
    )

    def pooled(cuts) -> float:
        one, two = means(world, cuts), means(further.world, cuts)
        return Objective().of({g: (one[g] * 16 + two[g] * 32) / 48 for g in one})

    assert pooled(found.plan.cuts) == pytest.approx(min(map(pooled, further.seen)))


def test_finals_are_not_run_twice(make_world, make_measurer, tmp_path) -> None:
    world, storage = make_world(), tmp_path / "search.log"

    def run(further):
        return search(
            world.profile(),
            0.3,
            measurer=make_measurer(world),
            finals=further,
            n_trials=12,
            storage=storage,
        ).plan

    first = run(make_measurer(more_of(world, make_world, 5)))
    idle = make_measurer(more_of(world, make_world, 5))
    assert run(idle).cuts == first.cuts
    assert idle.n_plans == 0
    corrected = make_measurer(more_of(world, make_world, 5))
    corrected.fingerprint = "of other answers"
    run(corrected)
    assert corrected.n_plans > 0


def test_the_stated_loss_carries_an_interval_that_shrinks_with_the_samples(
    make_world, make_measurer
) -> None:
    few, many = make_world(n_samples=30), make_world(n_samples=300)
    cuts = [Cut(2, 0.3, "grid")]
    losses, own = np.minimum(many.loss(cuts), MOST), many.sample_group
    held, margins = 0, []
    for world in (few, many):
        found = measure_all(make_measurer(world), cuts)
        margins.append(found.margins)
        for i, group in enumerate(world.groups):
            held += abs(found.measured[group] - losses[own == i].mean()) <= found.margins[group]
    assert held == 6
    assert all(0 < margins[1][g] < margins[0][g] / 2 for g in few.groups)
    nothing = measure_all(make_measurer(few), [])
    assert min(nothing.margins.values()) > 0  # ten samples do not prove that nothing is lost


def test_ever_fewer_finalists_are_measured_on_ever_more_samples_each_of_them_once(
    make_world, make_measurer
) -> None:
    world = make_world()
    further = make_measurer(more_of(world, make_world, 5))
    search(world.profile(), 0.3, measurer=make_measurer(world), finals=further, n_trials=30)
    n_plans, part = len(further.seen), 96 // len(ROUNDS)
    assert n_plans > ROUNDS[1]
    assert further.n_plans == len(set(further.seen)) <= ROUNDS[0]
    assert further.n_measured == part * (n_plans + ROUNDS[1] + ROUNDS[2])


def test_finals_that_were_interrupted_go_on_to_the_same_plan(
    make_world, make_measurer, tmp_path
) -> None:
    world = make_world()

    def run(storage, **how):
        further = make_measurer(more_of(world, make_world, 5), **how)
        measurer = make_measurer(world)
        found = search(
            world.profile(), 0.3, measurer=measurer, finals=further, n_trials=15, storage=storage
        )
        return found.plan, further

    once, whole = run(None)
    for dies_after in (40, 200):
        assert dies_after < whole.n_measured
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "study.journal", dies_after=dies_after)
    again, rest = run(tmp_path / "study.journal")
    assert (again.cuts, again.loss) == (once.cuts, once.loss)
    assert rest.n_measured <= whole.n_measured
