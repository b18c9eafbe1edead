"""A watched call holds what its own plan did in its first pass, and nothing of other calls."""

from __future__ import annotations

from contextvars import copy_context

import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

PLAN = Plan((Cut(1, 0.5, "grid"),))
IMAGE, TEXT = batch([prompt(3, 0, 4)]), batch([prompt(7)])


@pytest.fixture(scope="module")
def model():
    return tiny_llava(n_layers=4)


@torch.no_grad()
def cache_of(model, inputs, cache=None):
    return model(**inputs, past_key_values=cache, use_cache=True).past_key_values


def test_the_first_pass_of_a_call_decides(model):
    with apply(model, PLAN) as handle:
        with handle.watching() as call:
            cache = cache_of(model, IMAGE)
            first = handle.last
            cache_of(model, TEXT)
        assert call.is_pruned
        assert call.begins
        assert call.report is first
        with handle.watching() as later:
            cache_of(model, {"input_ids": TEXT["input_ids"]}, cache)
            cache_of(model, TEXT)  # a sequence beside the prompt, as guidance runs one
    assert later.is_pruned
    assert not later.begins
    assert later.report is None
    assert call.report is first


def test_a_call_of_another_model_without_a_plan_or_in_a_bypass_is_not_pruned(model):
    other = tiny_llava(n_layers=4)
    with apply(model, PLAN) as handle, apply(other, PLAN):
        with handle.watching() as call:
            cache_of(other, IMAGE)
        assert not call.has_run
        with handle.watching() as call, handle.bypassed():
            cache_of(model, IMAGE)
        assert call.has_run
        assert not call.is_pruned
    with handle.watching() as call:
        cache_of(model, IMAGE)
    assert not call.is_pruned


def test_a_context_may_be_left_in_another_one_than_it_was_entered_in(model):
    told = []
    with apply(model, PLAN, on_report=told.append) as handle:
        shadow = handle.watching(is_shadow=True)
        elsewhere = copy_context()
        elsewhere.run(shadow.__enter__)
        elsewhere.run(cache_of, model, IMAGE)
        shadow.__exit__(None, None, None)
        assert told == []
        cache_of(model, IMAGE)
        assert len(told) == 1
