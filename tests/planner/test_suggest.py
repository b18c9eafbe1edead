from __future__ import annotations

import optuna
import pytest

from tpcal.planner.space import Limits, project
from tpcal.planner.suggest import Encoding, choices
from tpcal.plans.schema import Cut, load_preset, presets

LIMITS = Limits(144, 12, min_count=4)


def published() -> list[tuple[Cut, ...]]:
    plans = [load_preset(name, 12).cuts for name in presets()]
    return [project(cuts, 0.22, 144, 12, limits=LIMITS) for cuts in plans]


@pytest.mark.parametrize("cuts", published(), ids=presets())
def test_every_published_schedule_survives_the_way_through_a_trial(cuts) -> None:
    encoding = Encoding(LIMITS, choices(c for plan in published() for c in plan), 4)
    params = encoding.encode(cuts)
    for name, dist in encoding.distributions.items():
        assert dist._contains(dist.to_internal_repr(params[name])), name
    assert project(encoding.decode(params), 0.22, 144, 12, limits=LIMITS) == cuts


def test_a_fractional_parameter_with_several_values_becomes_a_range() -> None:
    cuts = [
        Cut(1, 0.5, "balanced", {"attention_share": share, "score": "raw"})
        for share in (0.3, 0.9, 0.5)
    ]
    (choice,) = choices(cuts)
    assert (choice.tuned, choice.low, choice.high) == ("attention_share", 0.3, 0.9)
    assert choice.fixed == {"score": "raw"}


def test_other_parameters_stay_as_they_occur() -> None:
    cuts = [Cut(1, 0.5, "diversity", {"rule": rule}) for rule in ("max_min", "max_sum", "max_min")]
    assert [dict(c.fixed) for c in choices(cuts)] == [{"rule": "max_min"}, {"rule": "max_sum"}]


def test_drop_all_is_a_layer_or_never() -> None:
    encoding = Encoding(LIMITS, choices([Cut(0, 0.5, "grid")]), 4)
    assert encoding.distributions["drop_all"] == optuna.distributions.IntDistribution(1, 12)
    params = encoding.encode([Cut(2, 0.5, "grid")])
    assert params["drop_all"] == 12
    assert encoding.decode(params) == (Cut(2, 0.5, "grid"),)
    assert encoding.decode({**params, "drop_all": 9}) == (Cut(2, 0.5, "grid"), Cut(9, 0.0))
    bare = Encoding(Limits(144, 12, first_drop=None), encoding.choices, 4)
    assert "drop_all" not in bare.distributions


def test_suggested_cuts_fall_and_stay_in_the_decoder() -> None:
    encoding = Encoding(LIMITS, choices(c for plan in published() for c in plan), 4)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        cuts = encoding.suggest(study.ask())
        layers, keeps = [c.layer for c in cuts], [c.keep for c in cuts]
        assert layers == sorted(set(layers))
        assert keeps == sorted(keeps, reverse=True)
        assert len(cuts) <= 4
