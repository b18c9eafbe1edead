from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from tpcal.planner.search.encoding import Encoding, canonical, choices
from tpcal.plans.budget_projection import Limits, project
from tpcal.plans.plan_file import load_preset, presets
from tpcal.plans.plan_records import Cut
from tpcal.plans.selectors import create, names, searched

LIMITS = Limits(144, 12, min_count=4)


def published() -> list[tuple[Cut, ...]]:
    plans = [load_preset(name, 12).cuts for name in presets()]
    met = [project(cuts, 0.22, 144, 12, limits=LIMITS) for cuts in plans]
    return [tuple(map(canonical, cuts)) for cuts in met]


@pytest.mark.parametrize("cuts", published(), ids=presets())
def test_every_published_schedule_survives_the_way_through_a_trial(cuts) -> None:
    encoding = Encoding(LIMITS, choices(c for plan in published() for c in plan))
    params = encoding.encode(cuts)
    for name, dist in encoding.distributions.items():
        assert dist._contains(dist.to_internal_repr(params[name])), name
    assert project(encoding.decode(params), 0.22, 144, 12, limits=LIMITS) == cuts


def test_parameters_that_selectors_name_are_searched_and_others_stay_as_they_occur() -> None:
    cuts = [
        Cut(1, 0.5, "balanced", {"attention_share": 0.3, "score": "raw"}),
        Cut(1, 0.5, "balanced", {"attention_share": 0.9, "score": "raw"}),
        Cut(1, 0.5, "balanced", {"score": "softmax"}),  # the default
        Cut(1, 0.5, "dart"),
    ]
    found = choices(cuts)
    assert [c.fixed for c in found] == [{"score": "raw"}, {}, {}]
    space = Encoding(replace(LIMITS, max_cuts=2), found).distributions
    assert space["balanced.attention_share_0"] == FloatDistribution(0.0, 1.0)
    assert space["dart.image_pivots_1"] == IntDistribution(1, 16)
    assert space["selector_0"].choices == tuple(c.label for c in found)


def test_every_searched_parameter_can_be_set_over_its_whole_range() -> None:
    for name in names():
        for parameter, values in searched(name).items():
            for value in values:
                assert getattr(create(name, {parameter: value}), parameter) == value


def test_a_trial_writes_a_default_as_no_parameter() -> None:
    encoding = Encoding(LIMITS, choices([Cut(1, 0.5, "dart")]))
    cuts = (Cut(1, 0.5, "dart", {"image_pivots": 7}),)
    params = encoding.encode(cuts)
    assert encoding.decode(params) == cuts
    assert encoding.decode({**params, "dart.image_pivots_0": 4}) == (Cut(1, 0.5, "dart"),)


def test_drop_all_is_a_layer_or_never() -> None:
    encoding = Encoding(LIMITS, choices([Cut(0, 0.5, "grid")]))
    assert encoding.distributions["drop_all"] == optuna.distributions.IntDistribution(1, 12)
    params = encoding.encode([Cut(2, 0.5, "grid")])
    assert params["drop_all"] == 12
    assert encoding.decode(params) == (Cut(2, 0.5, "grid"),)
    assert encoding.decode({**params, "drop_all": 9}) == (Cut(2, 0.5, "grid"), Cut(9, 0.0))
    bare = Encoding(Limits(144, 12, first_drop=None), encoding.choices)
    assert "drop_all" not in bare.distributions


def test_suggested_cuts_fall_and_stay_in_the_decoder() -> None:
    encoding = Encoding(LIMITS, choices(c for plan in published() for c in plan))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        cuts = encoding.suggest(study.ask())
        layers, keeps = [c.layer for c in cuts], [c.keep for c in cuts]
        assert layers == sorted(set(layers))
        assert keeps == sorted(keeps, reverse=True)
        assert len(cuts) <= 4
