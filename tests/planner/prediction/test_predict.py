from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.objective import MOST
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor, _falling
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Condition, Cut


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_single_probed_cut_is_predicted_exactly(make_world, noise) -> None:
    profile = make_world().profile(noise=noise)
    predictor = Predictor(profile)
    for measure in ("kl", "flips", "local"):
        values = getattr(profile, measure).astype(float)
        values = np.minimum(values, MOST) if measure == "kl" else values
        means = np.stack([values[profile.sample_group == g].mean(0) for g in range(3)], axis=1)
        for probe, mean in zip(profile.probes, means, strict=True):
            cut = Cut(probe.layer, probe.keep, probe.selector, probe.params)
            np.testing.assert_allclose(predictor.losses([cut], measure), mean, rtol=1e-9)


def test_cuts_add_up_by_the_tokens_that_leave_at_each(make_world) -> None:
    predictor = Predictor(make_world().profile())
    first, second = Cut(2, 0.5, "grid"), Cut(5, 0.25, "grid")
    at_second = predictor.losses([second]) - predictor.losses([Cut(5, 0.5, "grid")])
    np.testing.assert_allclose(
        predictor.losses([first, second]), predictor.losses([first]) + at_second, atol=1e-9
    )


def test_a_selector_that_loses_as_much_at_many_tokens_as_at_few_is_not_free_after_a_good_one(
    make_world,
) -> None:
    profile = make_world().profile()
    flat = [p.selector == "grid" and 0 < p.keep < 1 for p in profile.probes]
    profile = replace(profile, kl=np.where(flat, 0.4, profile.kl).astype(np.float32))
    predictor = Predictor(profile)
    first, second = Cut(2, 0.5, "diversity"), Cut(5, 0.25, "grid")
    alone = predictor.losses([first])
    half = predictor.losses([Cut(5, 0.5, "grid")])  # half of the tokens leave in both
    assert (half > 0.3).all()
    assert (predictor.losses([first, second]) > alone + 0.8 * half).all()


def test_the_worlds_without_interaction_is_predicted_between_probed_keeps(make_world) -> None:
    world = make_world()
    world.interaction = 0.0
    predictor = Predictor(world.profile())
    cuts = [Cut(1, 0.6, "grid"), Cut(4, 0.3, "diversity", {"rule": "max_min"}), Cut(6, 0.0)]
    true = [np.minimum(world.loss(cuts), MOST)[world.sample_group == g].mean() for g in range(3)]
    np.testing.assert_allclose(list(predictor.loss(cuts).values()), true, rtol=0.1)


def test_more_tokens_are_never_predicted_to_hurt(make_world) -> None:
    predictor = Predictor(make_world().profile(noise=0.8))
    later = predictor.tables("kl").at(range(37)).later
    assert (np.diff(later, axis=-1) <= 1e-12).all()
    one = predictor.losses([Cut(1, 0.5, "grid")])
    for keep in (0.4, 0.2, 0.1, 0.0):
        more = predictor.losses([Cut(1, 0.5, "grid"), Cut(4, keep, "grid" if keep else None)])
        assert (more >= one).all()


def test_layers_between_probed_ones_are_filled_in(make_world) -> None:
    world = make_world(n_layers=9)
    sparse = Predictor(world.profile(layers=(0, 2, 4, 6, 8)))
    below, between, above = (sparse.losses([Cut(layer, 0.5, "grid")]) for layer in (2, 3, 4))
    assert ((above < between) & (between < below)).all()
    assert {o.selector: o.first_layer for o in sparse.options}[
        "attention"
    ] == 2  # attention was first probed there


def test_dropping_everything_is_shared_by_all_selectors(make_world) -> None:
    predictor = Predictor(make_world().profile())
    drop = predictor.losses([Cut(5, 0.0)])
    tables = predictor.tables("kl").at([0])
    for s in range(len(predictor.options)):
        np.testing.assert_allclose(tables.first[s, :, 5, 0], drop)


def test_an_unprobed_parameter_is_taken_for_the_nearest_probed_one(make_world) -> None:
    world = make_world()
    profile = world.profile()
    probes = tuple(
        replace(
            p,
            selector="balanced",
            params={"attention_share": 0.9 if p.selector == "grid" else 0.1},
        )
        if p.selector in ("grid", "attention")
        else p
        for p in profile.probes
    )
    predictor = Predictor(replace(profile, probes=probes))
    near = Cut(3, 0.5, "balanced", {"attention_share": 0.8})
    probed = Cut(3, 0.5, "balanced", {"attention_share": 0.9})
    assert predictor.loss([near]) == predictor.loss([probed])


def test_no_cut_and_a_conditional_cut_that_never_fires_lose_nothing(make_world) -> None:
    predictor = Predictor(make_world().profile())
    assert set(predictor.loss([]).values()) == {0.0}
    assert set(predictor.loss([Cut(2, 0.0, condition=Condition(0.0))]).values()) == {0.0}


def test_a_profile_of_drop_alls_only_cannot_plan(make_world) -> None:
    profile = make_world().profile()
    keep = [i for i, p in enumerate(profile.probes) if p.keep == 0]
    bare = replace(
        profile,
        probes=tuple(profile.probes[i] for i in keep),
        kl=profile.kl[:, keep],
        local=profile.local[:, keep],
        flips=profile.flips[:, keep],
    )
    with pytest.raises(UsageError, match="must hold probes with keep > 0"):
        Predictor(bare)


def test_flips_never_exceed_one(make_world) -> None:
    predictor = Predictor(make_world().profile())
    plan = [Cut(0, 0.1, "grid"), Cut(3, 0.0)]
    assert max(predictor.flips(plan).values()) <= 1


def test_many_curves_fall_like_each_of_them_alone() -> None:
    rng = np.random.default_rng(0)
    curves = rng.uniform(size=(5, 40, 30))
    curves[:, 3] = np.sort(curves[:, 3], axis=0)[::-1]  # these fall already
    falling = _falling(curves)
    for i, j in product(range(40), range(30)):
        alone = isotonic_regression(curves[:, i, j], increasing=False).x
        np.testing.assert_allclose(falling[:, i, j], alone, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(falling[:, 3], curves[:, 3])


def test_only_the_counts_that_are_read_are_held(make_world) -> None:
    predictor = Predictor(make_world(n_layers=32, n_tokens=10_000, n_groups=20).profile())
    tracemalloc.start()
    worst_group_optimum(predictor, Budget(0.22))
    n_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        n_bytes < 100e6
    )  # all counts: 8 bytes * 4 selectors * 20 groups * 32 layers * 10,001 * 2


@pytest.mark.parametrize("counts", [(0,), (7, 0, 36), (1, 5)])
def test_a_count_has_the_same_loss_whichever_others_are_read(make_world, counts) -> None:
    tables = Predictor(make_world().profile(noise=0.8)).tables("kl")
    some, every = tables.at(counts), tables.at(range(37))
    for mine, whole in ((some.first, every.first), (some.later, every.later)):
        np.testing.assert_array_equal(mine, whole[..., list(counts)])
    for s in range(len(every.first)):
        np.testing.assert_array_equal(tables.single(s, 3, counts[0]), some.first[s, :, 3, 0])
