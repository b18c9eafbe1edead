"""Reports of prompts without an image: an entry for every row, as such a row has in any batch."""

from __future__ import annotations

import doctest

import pytest
import torch
from models import batch, prompt

from tpcal.plans.executor import report as module
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Condition, Cut, Plan, entering

pytestmark = pytest.mark.versions

TEXTS = [prompt(7), prompt(3, seed=1)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(5, 0.0, condition=Condition(0.3))))


def equal(one, two):
    return (one is two is None) or torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))


@pytest.mark.parametrize("plan", [PLAN, Plan()])
def test_rows_without_an_image_are_reported_as_beside_one(model, plan):
    with apply(model, plan) as handle:
        model(**batch([*TEXTS, prompt(2, 0, 3)]))
        mixed = handle.last
        model(**batch(TEXTS))
        alone = handle.last
    assert alone.n_visual == mixed.n_visual[:2] == (0, 0)
    assert alone.grids == mixed.grids[:2] == ((), ())
    assert alone.counts() == mixed.counts()[:2]
    assert alone.lengths == ()
    assert [entering(0, counts, 8) for counts in alone.counts()] == [[0] * 8] * 2
    for at, (one, two) in enumerate(zip(alone.cuts, mixed.cuts, strict=True)):
        assert (one.layer, one.kept) == (two.layer, two.kept[:2])
        assert alone.patches(at, row=1) == mixed.patches(at, row=1) == ()
        for mass in ("text_to_visual", "visual_to_text"):
            mine, theirs = getattr(one, mass), getattr(two, mass)
            assert equal(mine, theirs if theirs is None else theirs[:2])


@pytest.mark.parametrize("ids", [[[1]], [[1, 9, 9]], [[1, 9], [1, 8]]])
def test_generation_without_an_image_reports_every_row(model, ids):
    ids = torch.tensor(ids)
    with apply(model, PLAN) as handle:
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert handle.last.n_visual == (0,) * len(ids)
    assert handle.last.counts() == [((2, 0), (5, 0))] * len(ids)


def test_turns_of_text_leave_the_report_of_the_image(model):
    inputs = batch([prompt(3, 0, 4)])
    with apply(model, PLAN) as handle:
        cache = model(**inputs).past_key_values
        model(input_ids=torch.tensor([[9, 9]]), past_key_values=cache)
    assert handle.last.n_visual == (16,)


def test_the_example_of_the_docstring_is_what_happens():
    assert doctest.testmod(module) == (0, 8)
