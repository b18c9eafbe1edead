from __future__ import annotations

import subprocess
import sys

import pytest

from tpcal.plans.errors import UsageError
from tpcal.plans.selectors import create, min_layer, names, needs, parameters


def test_the_directory_is_the_registry():
    assert names() == (
        *("attention", "balanced", "cdpruner", "coverage", "dart", "diversity", "grid", "pooling"),
        *("random", "sparsevlm", "visionzip", "vispruner"),
    )


def test_listing_the_names_does_not_import_torch():
    code = "import sys, tpcal.plans.selectors as s; s.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UsageError, match=r"^No selector is called 'nrom'\. Known: attention, balan"
    ):
        create("nrom", {})


def test_base_is_not_a_selector():
    with pytest.raises(UsageError, match="No selector is called 'base'"):
        create("base", {})


@pytest.mark.parametrize("name", names())
def test_defaults_are_valid_and_selectors_are_frozen_values(name):
    assert create(name, parameters(name)) == create(name)
    assert hash(create(name)) == hash(create(name))


@pytest.mark.parametrize("name", names())
def test_an_unknown_parameter_is_an_error(name):
    with pytest.raises(UsageError, match=f"^{name} has no parameter 'lambda'"):
        create(name, {"lambda": 1})


@pytest.mark.parametrize(
    "removed", [{"visit": "original"}, {"visit": "ranked"}, {"image_start": 35}]
)
def test_a_removed_parameter_of_an_old_plan_says_what_to_do(removed):
    with pytest.raises(UsageError, match=r"^dart no longer has the parameter '\w+'\. Delete it: "):
        create("dart", removed)


def test_an_unknown_parameter_lists_the_known_ones():
    with pytest.raises(
        UsageError, match=r"has no parameter 'shares'\. Known: attention_share, over"
    ):
        create("balanced", {"shares": 1})
    with pytest.raises(UsageError, match=r"grid has no parameter 'seed'\. It has none\."):
        create("grid", {"seed": 1})


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("balanced", {"attention_share": 1.5}, "balanced.attention_share must be in [0, 1]; got 1.5."),
        ("balanced", {"attention_share": -0.1}, "balanced.attention_share must be in [0, 1]; got -0.1."),
        ("balanced", {"attention_share": True}, "balanced.attention_share must be in [0, 1]; got True."),
        ("balanced", {"attention_share": float("nan")}, "balanced.attention_share must be in [0, 1]; got nan."),
        ("balanced", {"attention_share": "half"}, "balanced.attention_share must be in [0, 1]; got 'half'."),
        ("balanced", {"over_selection": 0.5}, "balanced.over_selection must be at least 1; got 0.5."),
        ("balanced", {"over_selection": float("inf")}, "balanced.over_selection must be at least 1; got inf."),
        ("balanced", {"boundary": "third"}, "balanced.boundary must be one of half, count, none; got 'third'."),
        ("balanced", {"boundary": []}, "balanced.boundary must be one of half, count, none; got []."),
        ("attention", {"score": None}, "attention.score must be one of softmax, raw; got None."),
        ("random", {"seed": 1.0}, "random.seed must be an integer of at least 0; got 1.0."),
        ("random", {"seed": -1}, "random.seed must be an integer of at least 0; got -1."),
        ("dart", {"image_pivots": 0}, "dart.image_pivots must be an integer of at least 1; got 0."),
        ("diversity", {"pivot": True}, "diversity.pivot must be one of farthest, centre, norm, first or an original index; got True."),
        ("diversity", {"pivot": -1}, "diversity.pivot must be one of farthest, centre, norm, first or an original index; got -1."),
    ],
)  # fmt: skip
def test_a_bad_value_names_parameter_rule_and_value(name, params, message):
    with pytest.raises(UsageError) as error:
        create(name, params)
    assert str(error.value) == message


def test_all_bad_values_are_reported_at_once():
    with pytest.raises(UsageError) as error:
        create("balanced", {"attention_share": 2, "score": "cooked"})
    assert len(str(error.value).splitlines()) == 2


def test_an_integer_will_do_for_a_fraction():
    assert create("balanced", {"attention_share": 1}).attention_share == 1


def test_needs_follow_the_parameters():
    assert needs("attention") == {"scores"}
    assert needs("dart") == {"keys", "text", "norm"}
    assert needs("balanced", {"attention_share": 0}) == frozenset()
    assert [min_layer("balanced", {"attention_share": s}) for s in (0, 0.5)] == [0, 1]
