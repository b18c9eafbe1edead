"""Losses of a model with a plan: those of the reference, or refused where there is none."""

from __future__ import annotations

import inspect

import pytest
import torch
from models import batch, prompt, tiny_llava
from releases import skip_elsewhere
from tiny import case

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

PLAN = Plan((Cut(2, 0.5, "attention"), Cut(6, 0.0)))
MUST_BE = r"labels must be -100 where the token before was dropped by the plan"


def scored(trial, inputs, *, after_images):
    """Labels of all text, or of text whose token before is text, too."""
    visual = trial.visual(inputs)
    ignored = visual | ~inputs["attention_mask"].bool()
    if not after_images:
        ignored = ignored | torch.nn.functional.pad(ignored, (1, 0))[:, :-1]
    return inputs["input_ids"].masked_fill(ignored, -100)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_the_loss_of_text_is_that_of_the_reference(name):
    trial = Trial(case(name, "sdpa"))
    if "CrossEntropyLoss" in inspect.getsource(type(trial.model).forward):
        skip_elsewhere("this model computes its loss itself, so nothing sees the labels")
    plan, inputs = trial.plans["content"], trial.left
    labels = scored(trial, inputs, after_images=False)
    asked = {**inputs, "labels": labels, "position_ids": trial.case.numbered(inputs)}
    with apply(trial.model, plan, check=False) as handle:
        loss = trial.model(**asked, use_cache=False).loss
        cuts = handle.last.cuts
        with pytest.raises(UsageError, match=MUST_BE):
            trial.model(**{**asked, "labels": scored(trial, inputs, after_images=True)})
        with handle.bypassed():
            unpruned = trial.model(**asked, use_cache=False).loss
    hidden = hidden_tokens(trial.visual(inputs), cuts, trial.n_layers)
    with hiding(trial.model, hidden):
        wanted = trial.model(**asked, use_cache=False).loss
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(loss, unpruned, rtol=0, atol=1e-5)


def test_the_error_names_the_first_label_and_goes_with_the_plan():
    model, inputs = tiny_llava(), batch([prompt(3, 0, 4)])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, -4:] = 7  # the first of them is predicted from the last token of the image
    with apply(model, PLAN):
        with pytest.raises(UsageError, match=r"got 1 other labels, the first at \[0, 20\]"):
            model(**inputs, labels=labels)
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        with pytest.raises(UsageError, match=MUST_BE):
            model(**inputs, labels=labels, shift_labels=shifted)
        text = batch([prompt(6)])
        assert model(**text, labels=text["input_ids"]).loss.isfinite()
    assert "_loss_function" not in vars(model)
    assert model(**inputs, labels=labels).loss.isfinite()
