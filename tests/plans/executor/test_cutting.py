"""Cuts with a condition, and selectors that break their promise."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, batch, prompt
from reference import close

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.plan_records import Condition, Cut, Plan
from tpcal.plans.selectors.random import Random

pytestmark = pytest.mark.versions

MIXED = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(7, seed=2),
    prompt(1, 0, 9, seed=3),
]
CONTENT = Plan((Cut(2, 0.5, "random"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))


def test_a_conditional_cut_is_decided_row_by_row(model):
    inputs = batch(MIXED)
    always = Plan((Cut(4, 0.0, condition=Condition(1.0)),))
    with apply(model, always) as handle:
        model(**inputs)
        mass = handle.last.cuts[0].text_to_visual
        assert handle.last.cuts[0].kept == ((), (), (), ())
    assert mass[2].isnan()  # no image, nothing to measure
    threshold = float(mass[[0, 1, 3]].sort().values[:2].mean())
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(threshold)),))) as handle:
        logits = model(**inputs).logits
        cut = handle.last.cuts[0]
    fired = [row for row in (0, 1, 3) if not cut.kept[row]]
    assert fired == [int(mass.nan_to_num(2).argmin())]
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    with hiding(model, hidden_tokens(inputs["input_ids"] == IMAGE, [cut], N_LAYERS)):
        wanted = model(**inputs).logits
    assert (logits - wanted)[text].abs().max() <= close(model, inputs)


def test_both_masses_of_a_condition_must_be_low(model):
    inputs = batch([prompt(2, 0, 3, 0, 5)])  # text between the images: visual tokens attend to it
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(1.0, 1.0)),))) as handle:
        model(**inputs)
        back = float(handle.last.cuts[0].visual_to_text[0])
        assert handle.last.cuts[0].kept == ((),)
    assert back > 0
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(1.0, back / 2)),))) as handle:
        model(**inputs)
        assert handle.last.cuts[0].kept == (tuple(range(2 * N_IMAGE)),)


def _more(choice, valid):
    return valid


def _fewer(choice, valid):
    return choice & (choice.cumsum(1) > 1)


def _filler(choice, valid):
    moved = choice.clone()
    moved[-1] = moved[-1].flip(0)
    return moved


def _numbers(choice, valid):
    return choice.long()


def _narrow(choice, valid):
    return choice[:, :-1]


def _list(choice, valid):
    return choice.tolist()


@pytest.mark.parametrize("fault", [_more, _fewer, _filler, _numbers, _narrow, _list])
def test_a_selector_that_breaks_its_promise_is_one_clear_error(model, fault, monkeypatch):
    select = Random.select

    def broken(self, tokens, n_keep):
        return fault(select(self, tokens, n_keep), tokens.valid)

    inputs = batch(MIXED)
    with apply(model, CONTENT):
        wanted = model(**inputs).logits
        with monkeypatch.context() as patch:
            patch.setattr(Random, "select", broken)
            with pytest.raises(UsageError, match="The selector random must return a bool tensor"):
                model(**inputs)
        assert torch.equal(model(**inputs).logits, wanted)
