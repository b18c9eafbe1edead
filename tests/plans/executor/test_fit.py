"""Why a plan does not fit a model, and plans that fit."""

from __future__ import annotations

import pytest
import torch
from models import batch, prompt

from tpcal.plans.errors import FitError
from tpcal.plans.executor.fit import check
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import identity
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import Condition, Cut, ModelIdentity, Plan

FIRST = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))


def test_all_problems_of_a_plan_are_named_at_once(model):
    plan = Plan(
        (
            Cut(0, 0.5, "attention"),
            Cut(2, 0.6, "nrom"),
            Cut(2, 0.5, "random", {"sed": 1}),
            Cut(99, 0.0),
        ),
        model=ModelIdentity(n_layers=32, family="qwen", fingerprint="sha256:0"),
    )
    problems = check(plan, model)
    for words in (
        "model.n_layers must be 8, as this model has; got 32",
        "model.family must be llava",
        "model.fingerprint must be",
        "cuts[0].layer must be at least 1 for attention",
        "cuts[1].selector: No selector is called 'nrom'",
        "cuts[1].keep must not rise",
        "cuts[2].layer must be above",
        "cuts[2].selector: random has no parameter 'sed'",
        "cuts[3].layer must be below the model's 8 layers; got 99",
    ):
        assert sum(words in p for p in problems) == 1, words
    with pytest.raises(FitError) as error:
        apply(model, plan)
    assert list(error.value.problems) == problems
    assert error.value.exit_code == 5


def test_a_preset_of_another_depth_is_to_be_scaled(model):
    (problem,) = check(load_preset("divprune"), model)
    assert "must be 8, as this model has; got 32" in problem
    assert "load_preset(name, n_layers=8)" in problem
    assert "Calibrate" not in problem


def test_a_condition_before_the_decoder_does_not_fit(model):
    plan = Plan((Cut(0, 0.0, condition=Condition(0.1)),))
    assert any("at least 1 for a cut with a condition" in p for p in check(plan, model))


def test_a_plan_for_another_structure_is_applied_when_told_to(model):
    plan = Plan((Cut(2, 0.0),), model=ModelIdentity(n_layers=9, fingerprint="sha256:0"))
    with pytest.raises(FitError, match="Calibrate this model; in Python, check=False applies it"):
        apply(model, plan)
    with apply(model, plan, check=False):
        model(**batch(FIRST))
    with pytest.raises(FitError, match="below the model's 8 layers"):
        apply(model, Plan((Cut(8, 0.0),)), check=False)


def test_a_plan_fits_the_model_it_was_made_for(model):
    assert check(Plan(PLAN.cuts, model=identity(model, "tiny", "main")), model) == []


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("paged|eager", "must not be paged to run a plan; got paged|eager"),
        ("of_my_own", "got of_my_own. Load the model with attn_implementation="),
        ("flash_attention_2", None),
        ("flash_attention_3", None),
        ("flex_attention", None),
    ],
)
def test_kernels_fit_by_the_masks_that_they_are_given(model, kernel, message):
    text = model.config.text_config
    before = text._attn_implementation_internal
    text._attn_implementation_internal = kernel
    try:
        problems = check(PLAN, model)
    finally:
        text._attn_implementation_internal = before
    assert problems == [] if message is None else message in problems[0]


def test_an_unknown_architecture_does_not_fit():
    with pytest.raises(FitError, match=r"Linear has no family\. It has no decoder"):
        apply(torch.nn.Linear(2, 2), PLAN)
