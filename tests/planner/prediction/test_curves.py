from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tpcal.calibrate.profile import Probe, Profile
from tpcal.planner.prediction.curves import layer_curves
from tpcal.planner.prediction.predict import probed_options


def only(profile: Profile, wanted: Callable[[Probe], bool]) -> Profile:
    """The profile with some of its probes."""
    places = [i for i, probe in enumerate(profile.probes) if wanted(probe)]
    arrays = {name: getattr(profile, name)[:, places] for name in ("kl", "local", "flips")}
    return replace(profile, probes=tuple(profile.probes[i] for i in places), **arrays)


def curves(profile: Profile) -> dict[str | None, dict[int, np.ndarray]]:
    """By selector; None for drop-all."""
    options = probed_options(profile)
    values = np.stack([profile.mean("kl", g) for g in profile.groups], axis=1)
    found = layer_curves(profile, options, values)
    return dict(zip([*(o.selector for o in options), None], found, strict=True))


def test_probed_layers_are_as_measured_however_ragged_the_probes(make_world) -> None:
    rng = np.random.default_rng(0)
    world = make_world()
    full = curves(world.profile(noise=0.5))
    ragged = only(world.profile(noise=0.5), lambda p: p.keep == 0 or rng.random() < 0.4)
    found = curves(ragged)
    for probe in ragged.probes:
        count = round(probe.keep * world.n_tokens)
        np.testing.assert_allclose(
            found[probe.selector][count][probe.layer], full[probe.selector][count][probe.layer]
        )


def test_between_probed_layers_it_falls_as_dropping_all_does(make_world) -> None:
    world = make_world(n_groups=1)  # of which every cut's loss is a fixed share of a drop-all's
    whole = world.profile()
    sparse = only(whole, lambda p: p.keep == 0 or p.layer in (1, 4))
    full, found = curves(whole), curves(sparse)
    for selector in ("grid", "diversity"):
        for count, curve in found[selector].items():
            np.testing.assert_allclose(curve[1:], full[selector][count][1:], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_keep_probed_once_stays_between_its_neighbours(make_world, seed) -> None:
    world = make_world(seed=seed)
    sparse = only(world.profile(), lambda p: p.keep != 0.25 or p.layer == 3)
    for selector, by_count in curves(sparse).items():
        if selector is None:
            continue
        some, fewer, more = by_count[9], by_count[4], by_count[18]  # of 36 tokens
        first = int(selector == "attention")
        assert (some[first:] <= fewer[first:] + 1e-9).all()
        assert (some[first:] >= more[first:] - 1e-9).all()


def test_without_drop_alls_it_is_linear_and_ends_at_zero(make_world) -> None:
    world = make_world()
    bare = only(world.profile(), lambda p: p.keep > 0 and p.layer in (2, 4, 6))
    for by_count in list(curves(bare).values())[:-1]:
        for curve in by_count.values():
            np.testing.assert_allclose(curve[3], (curve[2] + curve[4]) / 2)
            np.testing.assert_allclose(curve[7], curve[6] / 2)
            np.testing.assert_allclose(curve[0], curve[2])
