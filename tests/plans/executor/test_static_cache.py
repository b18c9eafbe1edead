"""Static caches under a plan: the tokens of a dynamic cache, in buffers that keep their sizes."""

from __future__ import annotations

import flash
import pytest
import torch
from models import N_LAYERS, batch, prompt, rows_alone, tiny_llava
from releases import require_unpruned
from tiny import case
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import DynamicCache, StaticCache

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.cache import kv_bytes
from tpcal.plans.executor.compat import CACHE_NAME
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.static_cache import PrunedStaticKV, PrunedStaticSlidingKV
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

FIRST = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
STEPS = {"max_new_tokens": 6, "do_sample": False}
STATIC = {"cache_implementation": "static"}


def static(model, room):
    return StaticCache(config=model.config, max_cache_len=room)


def test_generate_gives_the_tokens_of_a_dynamic_cache(model):
    inputs = batch(FIRST)
    with apply(model, PLAN) as handle:
        for more in ({}, {"num_beams": 3, "num_return_sequences": 2}):
            wanted = model.generate(**inputs, **STEPS, **more)
            report = handle.last
            assert torch.equal(model.generate(**inputs, **STEPS, **more, **STATIC), wanted)
            assert [cut.kept for cut in handle.last.cuts] == [cut.kept for cut in report.cuts]
    assert not torch.equal(model.generate(**inputs, **STEPS, **more, **STATIC), wanted)


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_windows_and_positions_in_three_dimensions_do_too(name):
    trial = Trial(case(name, "sdpa"))
    require_unpruned(lambda: trial.generate(trial.left, 12, **STATIC))
    with apply(trial.model, trial.plans["attention"], check=False):
        wanted = trial.generate(trial.left, 12)
        assert torch.equal(trial.generate(trial.left, 12, **STATIC), wanted)


def test_a_step_that_was_recorded_once_can_be_replayed():
    """As a CUDA graph is: no tensor of a step is made from a number that only the host knows."""
    model = tiny_llava(n_layers=3)
    inputs = rows_alone(batch(FIRST))[1]
    n, tokens = inputs["input_ids"].shape[1], torch.tensor([9, 8, 7, 31])
    dynamic, buffers = DynamicCache(config=model.config), static(model, n + len(tokens))
    with apply(model, Plan((Cut(1, 0.5, "attention"), Cut(2, 0.0)))):
        for cache in (dynamic, buffers):
            model(**inputs, **{CACHE_NAME: cache})
        wanted = [model(input_ids=t[None, None], **{CACHE_NAME: dynamic}).logits for t in tokens]
        addresses = [layer.keys.data_ptr() for layer in buffers.layers]

        def step(token, position):
            asked = {"input_ids": token, "position_ids": position, CACHE_NAME: buffers}
            return model(**asked).logits

        places = torch.arange(n, n + len(tokens))[:, None, None]
        recorded = make_fx(step)(tokens[:1, None], places[0])  # which also runs it
    for at in range(1, len(tokens)):
        got = recorded(tokens[at : at + 1, None], places[at])
        torch.testing.assert_close(got, wanted[at], rtol=0, atol=1e-4)
    assert [layer.keys.data_ptr() for layer in buffers.layers] == addresses
    assert int(buffers.get_seq_length()) == n + len(tokens)


def test_a_later_image_is_pruned_too_and_buffers_hold_what_stays():
    model = tiny_llava()
    first, second = batch([prompt(3, 0, 4)]), batch([prompt(0, 6, seed=4)], seed=9)
    n = [len(turn["input_ids"][0]) for turn in (first, second)]
    room, logits, held = sum(n) + 5, [], []
    for cache in (DynamicCache(config=model.config), static(model, room)):
        with apply(model, PLAN) as handle:
            model(**first, **{CACHE_NAME: cache})
            model(input_ids=torch.tensor([[9]]), **{CACHE_NAME: cache})
            real = torch.ones(1, n[0] + 1 + n[1], dtype=torch.int64)
            turn = {**second, "attention_mask": real, CACHE_NAME: cache}
            logits.append(model(**turn).logits[0, -1])
            held.append(kv_bytes(cache))
            lengths = handle.last.lengths
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
    n_seen = sum(n) + 1
    assert lengths[0] - lengths[-1] == 16
    for dynamic, buffer in zip(*held, strict=True):
        assert buffer == dynamic * (dynamic // 256 + room - n_seen) // (dynamic // 256)


def test_a_cache_that_was_reset_begins_anew():
    model = tiny_llava()
    inputs, other = batch([prompt(3, 0, 4)]), batch([prompt(9)])
    cache = static(model, 40)
    with apply(model, PLAN) as handle:
        wanted = model(**inputs, **{CACHE_NAME: cache}).logits
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(model(**inputs, **{CACHE_NAME: cache}).logits, wanted)
        assert handle.last.lengths[-1] < handle.last.lengths[0]
    cache.reset()
    unpruned = model(**other, use_cache=False).logits
    torch.testing.assert_close(model(**other, **{CACHE_NAME: cache}).logits, unpruned)
    assert [layer.max_cache_len for layer in cache.layers] == [40] * N_LAYERS


def test_what_came_after_the_prompt_can_be_forgotten_and_no_more():
    held = Held(torch.tensor([[0, 1, 3, 5]]), None, 6, 0)
    states = torch.arange(4.0)[None, None, :, None]
    layer = PrunedStaticKV(held, states, states, 9)
    assert layer.keys.shape[2] == 7
    layer.update(states[:, :, :2], states[:, :, :2])
    assert (int(layer.get_seq_length()), layer.get_mask_sizes(1)) == (8, (9, 0))
    assert layer.upcoming().positions().tolist() == [[0, 1, 3, 5, 6, 7, 8]]
    layer.crop(-2)
    assert int(layer.get_seq_length()) == 6
    with pytest.raises(UsageError, match=r"can forget the 0 tokens after the prompt; got 1\."):
        layer.crop(-1)


def test_a_window_moves_on_and_its_empty_columns_are_filler():
    held = Held(torch.tensor([[1, 4]]), None, 5, 0)
    states = torch.tensor([1.0, 4.0])[None, None, :, None]
    layer = PrunedStaticSlidingKV(held, states, states, 4)
    for position in (5.0, 6.0, 7.0):
        after = layer.upcoming()
        layer.update(*[torch.full((1, 1, 1, 1), position)] * 2)
        real = after.mask()[0]
        assert layer.keys[0, 0, :, 0][real].tolist() == after.positions()[0][real].tolist()
    assert layer.keys[0, 0, :, 0].tolist() == [4, 5, 6, 7]
    assert layer.get_seq_length() == 8
    with pytest.raises(UsageError, match="use a DynamicCache"):
        layer.crop(-1)


def test_what_cannot_run_is_refused_before_a_layer_runs():
    model = tiny_llava()
    inputs = batch(FIRST)
    with apply(model, PLAN):
        with pytest.raises(UsageError, match=r"it has 20 places, and there are 43 tokens"):
            model(**inputs, **{CACHE_NAME: static(model, 20)})
        cache = static(model, 60)
        cache.offloading = True
        with pytest.raises(UsageError, match="got a static cache that is offloaded"):
            model(**inputs, **{CACHE_NAME: cache})
        model.set_attn_implementation(flash.NAME)
        with pytest.raises(UsageError, match="must go with the attention implementation sdpa"):
            model(**inputs, **{CACHE_NAME: static(model, 60)})
