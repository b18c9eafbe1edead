"""Handles: passes that fail, copies, saved weights, and the examples of the docstrings."""

from __future__ import annotations

import copy
import doctest
import io
import pickle

import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import handle as module
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.laws.identity import failing
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

MIXED = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(7, seed=2),
    prompt(1, 0, 9, seed=3),
]
CONTENT = Plan((Cut(2, 0.5, "random"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
ATTENTION = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "attention"), Cut(6, 0.0)))


def test_a_pass_of_another_length_may_follow_one_that_failed(model):
    inputs = batch(MIXED)
    attention = find(model).layers(model)[1].self_attn
    with apply(model, ATTENTION):
        wanted = model(**inputs).logits
        with failing(attention.q_proj), pytest.raises(Exception, match="^$"):
            model(**inputs)  # the probe was asked, but not answered
        model(input_ids=torch.tensor([[9]]))
        assert torch.equal(model(**inputs).logits, wanted)


def test_the_last_hidden_states_have_every_token(model):
    inputs = batch(MIXED)
    n_tokens = inputs["input_ids"].shape[1]
    with apply(model, CONTENT):
        out = model(**inputs, output_hidden_states=True)
        last = model.model(**inputs).last_hidden_state
    assert torch.equal(out.hidden_states[-1], last)
    lengths = [states.shape[1] for states in out.hidden_states]
    assert lengths[0] == lengths[-1] == n_tokens > min(lengths)  # between, of what is left


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "save": lambda module: torch.save(module, io.BytesIO()),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_model_with_a_plan_is_not_copied_and_without_it_is_again(how):
    model, inputs = tiny_llava(), batch(MIXED)
    parts = (model, model.model, model.model.language_model, {"held": model})
    with apply(model, CONTENT):
        for part in parts:
            with pytest.raises(UsageError, match=r"cannot be copied or pickled.*Call remove\(\)"):
                COPIES[how](part)
    for part in parts:
        COPIES[how](part)
    copied = copy.deepcopy(model)
    with apply(copied, CONTENT) as handle:
        unpruned = model(**inputs).logits
        assert handle.last is None
        assert not torch.equal(copied(**inputs).logits, unpruned)


def test_weights_are_saved_while_a_plan_is_applied(model, tmp_path):
    with apply(model, CONTENT):
        names = list(model.state_dict())
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
    assert list(again.state_dict()) == names


def test_the_examples_of_the_docstrings_are_what_happens():
    assert doctest.testmod(module) == (0, 16)
