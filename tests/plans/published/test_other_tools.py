"""Other tools' words."""

from __future__ import annotations

import pytest

from tpcal.plans.errors import UsageError
from tpcal.plans.plan_file import dump_plan, load_preset, parse_plan
from tpcal.plans.plan_records import Cut
from tpcal.plans.published.other_tools import METHODS, schedule, share_kept

FASTV = Cut(2, 0.5, "attention")


@pytest.mark.parametrize(
    "text",
    [
        *("0.22", " 0.22 ", "22%", "22 %", "11/50"),
        *("keep_ratio=0.22", "keep-ratio=22%", "KEEP=.22", "22% kept"),
        *("rate=0.78", "pruned=78%", "sparsity=0.78", "prune_ratio=0.78", "78% pruned"),
    ],
)
def test_many_words_say_one_budget(text):
    assert share_kept(text) == 0.22


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "1.01", "nan", "22", "22%/3", "1/0"),
        *("keep=", "rate=1", "rate=-0.1", "ratio=0.5"),
        *("22% of all", "keep_ratio 0.22", "0.22 0.3"),
    ],
)
def test_another_budget_is_refused_with_the_words_there_are(text):
    with pytest.raises(UsageError, match=r"'78% pruned'.*keep_ratio.*rate") as caught:
        share_kept(text)
    assert "\n" not in str(caught.value)


def test_ratios_of_uniprunebench_are_of_what_is_left():
    words = "2:fastv_intra_llm:0.5;6:pdrop_intra_llm:0.3; 12:pdrop:0.2"
    assert schedule(words, 28).cuts == (
        FASTV,
        Cut(6, 0.15, "attention"),
        Cut(12, 0.03, "attention"),
    )
    # By its own arithmetic 1296 tokens go 648, 194, 38; ours rounds once: 648, 194, 39
    assert schedule(words, 28).counts(1296) == (648, 194, 39)


def test_pyramiddrop_is_its_preset():
    words = "layer_list=[8,16,24] image_token_ratio_list=[1.0,0.5,0.25,0.125]"
    assert schedule(words, 32).cuts == load_preset("pyramiddrop").cuts
    assert schedule("layers=[8,16,24] keeps=[0.5,25%,1/8]", 32).cuts == schedule(words, 32).cuts


def test_fastv_says_what_goes():
    assert schedule("K=2 R=50%", 32).cuts == load_preset("fastv").cuts == (FASTV,)
    assert schedule("K=2 R=0.75", 32).cuts == load_preset("fastv-75").cuts


def test_methods_are_selectors_with_their_parameters():
    (cut,) = schedule("0:divprune_pre_llm:0.098", 32).cuts
    assert cut == load_preset("divprune").cuts[0]
    (cut,) = schedule("0:todre:0.25", 32).cuts
    assert cut == load_preset("todre-25").cuts[0]
    (cut,) = schedule("layers=[2] keeps=[300/576] method=sparsevlm", 32).cuts
    assert cut == Cut(2, 0.520833, "sparsevlm")
    for name, (selector, params) in METHODS.items():
        assert schedule(f"3:{name}:0.5", 8).cuts == (Cut(3, 0.5, selector, params),)


def test_nothing_kept_is_a_drop_all():
    assert schedule("2:fastv:0.5,16:pdrop:0", 32).cuts == (FASTV, Cut(16, 0.0))


@pytest.mark.parametrize(
    "words", ["2:fastv:0.5", "0:divprune:0.3,9:dart:0.5,20:dart:0", "K=3 R=0"]
)
def test_a_converted_plan_survives_its_file(words):
    plan = schedule(words, 32)
    assert parse_plan(dump_plan(plan)) == plan
    assert words in plan.source


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "2:fitprune:0.5",
            r"No selector is known as 'fitprune'\. Known: attention, .*pyramiddrop",
        ),
        ("2:fastv", "must be layer:method:ratio, such as 2:fastv:0.5.*got '2:fastv'"),
        ("2:fastv:50", "must be layer:method:ratio"),
        ("2:fastv:0.5:1", "must be layer:method:ratio"),
        ("x:fastv:0.5", "must be layer:method:ratio"),
        (" ", "must have cuts"),
        ("0:fastv:0.5", "must be at layer 1 or later, as attention reads attention"),
        ("32:fastv:0.5", "must stand in a decoder of 32 layers, 0 to 31"),
        ("6:fastv:0.5,2:dart:0.5", "layer 6 .*must come before layers that keep as much or less"),
        ("layers=[2,6] keeps=[0.2,0.5]", "must come before layers that keep as much or less"),
        ("layers=[2,6] keeps=[0.5]", "must have a whole layer for each share kept"),
        ("layers=[2.5] keeps=[0.5]", "must have a whole layer for each share kept"),
        ("K=2", "must be layer:method:ratio,… or layer_list="),
        ("layers=[2] keeps=[0.5] k=3", "must be layer:method:ratio,… or layer_list="),
        ("layers=[2] keeps=[0.5] fast", "must be layer:method:ratio,… or layer_list="),
    ],
)
def test_what_no_plan_can_be_is_refused(words, said):
    with pytest.raises(UsageError, match=said):
        schedule(words, 32)
