from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tpcal.calibrate import probe_grid
from tpcal.calibrate.profile import MEASURES, Probe, Profile
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.next_probes import MOST_PASSES, MOST_SHARE, next_probes, work
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor


def part(profile: Profile, probes: Sequence[Probe]) -> Profile:
    """The profile with some of its probes, in its order."""
    wanted = set(probes)
    places = [i for i, probe in enumerate(profile.probes) if probe in wanted]
    arrays = {name: getattr(profile, name)[:, places] for name in MEASURES}
    return replace(profile, probes=tuple(profile.probes[i] for i in places), **arrays)


def rest(profile: Profile, probes: Sequence[Probe]) -> list[Probe]:
    """What a part lacks of the whole."""
    return [probe for probe in profile.probes if probe not in set(probes)]


def refined(whole: Profile) -> Profile:
    """What calibration of the whole grid makes when it refines."""
    probes = list(probe_grid.coarse(whole.probes))
    while more := next_probes(part(whole, probes), rest(whole, probes)):
        probes += more
    return part(whole, probes)


def test_the_work_of_a_probe_is_the_layers_it_replays_and_the_tokens_in_them(make_world) -> None:
    profile = make_world(n_layers=8, n_tokens=36).profile()  # and 10 text tokens
    probes = [Probe(0, 0.5, "grid"), Probe(6, 0.5, "grid"), Probe(6, 0.0)]
    assert work(profile, probes) == pytest.approx([8 * 28 / 46, 2 * 28 / 46, 2 * 10 / 46])


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))]
)
def test_half_the_work_finds_plans_as_good_as_the_whole_grid(make_world, seed) -> None:
    world = make_world(n_layers=12, seed=seed)
    whole = world.profile(noise=0.1)
    some = refined(whole)
    assert sum(work(whole, some.probes)) <= MOST_SHARE * sum(work(whole, whole.probes))
    lost = {"refined": 0.0, "whole": 0.0}
    for target in (0.15, 0.22, 0.35, 0.5):
        for name, profile in {"refined": some, "whole": whole}.items():
            plan = worst_group_optimum(Predictor(profile), Budget(target))
            losses = [world.loss(plan)[world.sample_group == g].mean() for g in range(3)]
            lost[name] += max(losses)
    assert lost["refined"] <= 1.05 * lost["whole"]


def test_deep_decoders_are_refined_for_the_work_of_a_few_passes(make_world) -> None:
    whole = make_world(n_layers=40).profile(layers=range(0, 40, 3), noise=0.1)
    allowed = MOST_PASSES * 40
    assert allowed < MOST_SHARE * sum(work(whole, whole.probes))
    some = refined(whole)
    assert sum(work(whole, probe_grid.coarse(whole.probes))) < sum(work(whole, some.probes))
    assert sum(work(whole, some.probes)) <= allowed


def test_it_names_untried_probes_in_their_order_and_always_the_same(make_world) -> None:
    whole = make_world().profile(noise=0.1)
    some = probe_grid.coarse(whole.probes)
    untried = rest(whole, some)
    found = next_probes(part(whole, some), untried)
    assert found
    assert list(found) == [probe for probe in untried if probe in set(found)]
    assert found == next_probes(part(whole, some), untried)


def test_probes_go_where_good_plans_cut(make_world) -> None:
    world = make_world(n_layers=12)
    world.skill[:] = [[1.6], [0.8], [0.1]]  # grid loses 16 times as much as diversity
    whole = world.profile()
    coarse, some = probe_grid.coarse(whole.probes), refined(whole)
    added = [probe for probe in some.probes if probe not in set(coarse)]
    n = Counter(probe.selector for probe in added)
    assert n["grid"] < n["diversity"] / 2
    assert all(probe.keep < 0.5 for probe in added if probe.selector == "grid")


def test_it_ends_where_nothing_is_left_or_nothing_matters(make_world) -> None:
    whole = make_world().profile()
    assert next_probes(whole, []) == ()
    dull = replace(whole, kl=whole.kl * 1e-9)
    some = probe_grid.coarse(dull.probes)
    assert next_probes(part(dull, some), rest(dull, some)) == ()
