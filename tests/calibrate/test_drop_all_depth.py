"""How early the image can go: by hand on synthetic profiles, and what samples cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tpcal.calibrate.drop_all_depth import (
    blind_spots,
    drop_all_curve,
    late_groups,
    late_layer,
    safe_depth,
    safe_depths,
)
from tpcal.calibrate.profile import Probe, Profile
from tpcal.plans.cost import DecoderShape
from tpcal.plans.plan_records import ModelIdentity


def make_profile(
    losses: Mapping[str, Sequence[float]], layers: Sequence[int] | None = None
) -> Profile:
    """One group per entry, two samples each: what dropping all costs before each probed layer."""
    n_layers = 10
    layers = range(n_layers) if layers is None else layers
    probes = [*(Probe(layer, 0.5, "grid") for layer in layers), *(Probe(at, 0.0) for at in layers)]
    rows = [[9.0] * len(layers) + [one[at] for at in layers] for one in losses.values()]
    kl = np.repeat(np.array(rows, np.float32), 2, axis=0)
    masses = np.zeros((len(kl), n_layers), np.float32)
    return Profile(
        model=ModelIdentity(n_layers),
        shape=DecoderShape(n_layers, 8, 16, 2, 2, 4, 10, 4),
        n_tokens=16,
        n_text=4,
        groups=tuple(losses),
        sample_group=np.repeat(np.arange(len(losses)), 2),
        probes=tuple(probes),
        local=kl,
        kl=kl,
        flips=kl,
        turns=masses,
        text_to_visual=masses,
        visual_to_text=masses,
    )


SEEING = [2.0, 2, 1, 0.5, 0.2, 0.05, 0, 0, 0, 0]
READING = [3.0, 3, 3, 3, 3, 3, 2, 0.4, 0.004, 0]


def test_the_curve_is_that_of_drop_all_alone() -> None:
    profile = make_profile({"see": SEEING, "read": READING})
    assert list(drop_all_curve(profile, "read").values()) == pytest.approx(READING)
    assert list(drop_all_curve(profile, "read")) == list(range(10))
    assert drop_all_curve(profile)[6] == pytest.approx(1.0)  # the mean of 0 and 2


def test_safe_is_where_nothing_later_costs_more() -> None:
    assert safe_depth({0: 1.0, 3: 0.001, 5: 0.5, 7: 0.009, 9: 0.0}) == 7
    assert safe_depth({5: 0.02, 3: 0.0}) is None  # the last probe counts, in any order
    assert safe_depth({}) is None
    found = safe_depths(make_profile({"see": SEEING, "read": READING}))
    assert found == {"see": 6, "read": 8}
    assert safe_depths(make_profile({"read": READING}), threshold=0.5) == {"read": 7}


def test_samples_with_a_group_that_looks_deep_are_not_warned_of() -> None:
    profile = make_profile({"see": SEEING, "read": READING})
    assert late_layer(profile) == 6
    assert late_groups(profile) == ("read",)
    assert blind_spots(profile) == ()


def test_samples_that_never_look_deep_are_warned_of_whatever_they_are_called() -> None:
    profile = make_profile({"see": SEEING, "reading": SEEING})
    assert late_groups(profile) == ()
    (said,) = blind_spots(profile)
    assert "needs the image from layer 6 on" in said
    assert "Reading text usually does" in said


def test_a_single_group_is_warned_of_and_named() -> None:
    (said,) = blind_spots(make_profile({"default": READING}))
    assert "one group (default)" in said
    assert "--group-column" in said
    assert len(blind_spots(make_profile({"default": SEEING}))) == 2


def test_nothing_is_said_of_layers_that_were_not_probed() -> None:
    profile = make_profile({"see": SEEING, "also": SEEING}, layers=range(5))
    assert late_groups(profile) is None
    assert blind_spots(profile) == ()
