"""Switches: what is left unpruned is the unpruned model's, and no sequence changes sides."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import tiny
import torch
from models import batch, prompt, tiny_llava
from reference import close, positions_of
from releases import skip_elsewhere
from transformers import DynamicCache

from tpcal.calibrate.bench.generation_times import applied
from tpcal.plans.errors import UsageError
from tpcal.plans.executor.cache import holds_dropped
from tpcal.plans.executor.handle import apply
from tpcal.plans.kill_switch import off_by_variable, refuse_off
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

MIXED = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLANS = {
    "content": Plan((Cut(0, 0.5, "random"), Cut(4, 0.25, "grid"), Cut(6, 0.0))),
    "attention": Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "attention"))),
    "vision": Plan((Cut(0, 0.5, "vispruner"), Cut(2, 0.25, "visionzip"))),
}
CONTENT = PLANS["content"]


class Talk:
    """Turns of a conversation with one cache."""

    def __init__(self, model):
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.real = None

    def say(self, rows, seed=0):
        """Logits of one more turn of every prompt."""
        inputs = batch(rows, seed=seed)
        new = inputs.pop("attention_mask")
        self.real = new if self.real is None else torch.cat([self.real, new], dim=1)
        return self.model(
            **inputs,
            attention_mask=self.real,
            position_ids=positions_of(self.real)[:, -new.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
        ).logits


FIRST, SECOND, THIRD = [prompt(3, 0, 4)], [prompt(2, 0, 5, seed=3)], [prompt(4, seed=5)]


def talked(model, between=lambda turn: None):
    """Logits of three turns; ``between`` is called before each."""
    talk, logits = Talk(model), []
    for turn, rows in enumerate((FIRST, SECOND, THIRD)):
        between(turn)
        logits.append(talk.say(rows, seed=turn))
    return logits, talk.cache


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("how", ["bypassed", "off", "variable"])
def test_a_pass_that_a_switch_leaves_unpruned_is_the_models_own_bit_by_bit(
    model, plan, how, monkeypatch
):
    inputs, options = batch(MIXED), {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    wanted, tokens = model(**inputs).logits, model.generate(**inputs, **options)
    if how == "variable":
        monkeypatch.setenv("TPCAL_OFF", "1")
    with apply(model, plan) as handle:
        if how == "off":
            handle.off()
        with handle.bypassed() if how == "bypassed" else apply_nothing():
            assert torch.equal(model(**inputs).logits, wanted)
            assert torch.equal(model.generate(**inputs, **options), tokens)
            assert handle.last is None
        assert handle.is_off == (how != "bypassed")
        handle.on()
        pruned = not torch.equal(model(**inputs).logits, wanted)
        assert pruned == (how != "variable")
        assert (handle.last is not None) == pruned


def apply_nothing():
    return torch.no_grad()


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "gemma4_shared", "paligemma", "llama4"])
def test_every_kind_of_decoder_is_left_unpruned_bit_by_bit(name):
    trial = Trial(tiny.case(name, "sdpa"))
    before = trial.model(**trial.left).logits
    for plan in trial.plans.values():
        with apply(trial.model, plan, check=False) as handle, handle.bypassed():
            assert torch.equal(trial.model(**trial.left).logits, before)


def test_a_sequence_that_lost_tokens_goes_on_with_the_plan(model):
    with apply(model, CONTENT) as handle:
        wanted, _ = talked(model)
        after, cache = talked(model, lambda turn: turn == 1 and handle.off())
        handle.on()
        assert holds_dropped(cache)
        talk = Talk(model)
        inside = [talk.say(FIRST)]
        with handle.bypassed():
            inside += [talk.say(SECOND, seed=1), talk.say(THIRD, seed=2)]
    for logits in (after, inside):
        for one, two in zip(logits, wanted, strict=True):
            assert torch.equal(one, two)


def test_a_sequence_that_began_unpruned_goes_on_unpruned(model):
    unpruned, _ = talked(model)

    def first_only(turn):
        handle.off() if turn == 0 else handle.on()

    with apply(model, CONTENT) as handle:
        logits, cache = talked(model, first_only)
        assert not holds_dropped(cache)
        talk = Talk(model)
        with handle.bypassed():
            inside = [talk.say(FIRST)]
        fork = copy.deepcopy(talk.cache)  # a copied conversation is the same conversation
        inside += [talk.say(SECOND, seed=1), talk.say(THIRD, seed=2)]
        talk.cache = fork
        talk.real = talk.real[:, : fork.get_seq_length()]
        assert torch.equal(talk.say(SECOND, seed=1), unpruned[1])
        fork.reset()  # an empty cache begins a sequence, which is pruned again
        if fork.get_seq_length():
            skip_elsewhere("a cache that is reset keeps zeros in its length")
        talk.real = None
        pruned = talk.say(FIRST)
        assert holds_dropped(fork)
    assert not torch.equal(pruned, unpruned[0])
    for given in (logits, inside):
        for one, two in zip(given, unpruned, strict=True):
            assert torch.equal(one, two)


def test_the_cache_that_a_model_makes_itself_is_marked_too(model):
    inputs = batch([prompt(3, 0, 4)])
    more = {**batch([prompt(2, 0, 5, seed=3)], seed=1)}
    n = inputs["input_ids"].shape[1] + more["input_ids"].shape[1]

    def second(first):
        return model(**{**more, "attention_mask": None}, past_key_values=first.past_key_values)

    unpruned = second(model(**inputs, use_cache=True)).logits
    with apply(model, CONTENT) as handle:
        with handle.bypassed():
            first = model(**inputs, use_cache=True)
        out = second(first)
    assert out.past_key_values.get_seq_length() == n
    assert torch.equal(out.logits, unpruned)


def test_a_text_before_the_image_leaves_the_choice_open(model):
    def say(how):
        talk = Talk(model)
        talk.say(THIRD)
        with how():
            return talk.say(FIRST)

    unpruned = say(apply_nothing)
    with apply(model, CONTENT) as handle:
        assert torch.equal(say(handle.bypassed), unpruned)
        assert not torch.equal(say(apply_nothing), unpruned)


def test_a_text_that_was_read_while_the_plan_was_off_leaves_the_choice_open(model):
    def say(first, second):
        talk = Talk(model)
        with first():
            talk.say(THIRD)
        talk.cache = copy.deepcopy(talk.cache)
        with second():
            return talk.say(FIRST)

    with apply(model, CONTENT) as handle:
        pruned = say(apply_nothing, apply_nothing)
        assert torch.equal(say(handle.bypassed, apply_nothing), pruned)
        assert not torch.equal(say(handle.bypassed, handle.bypassed), pruned)


def test_a_cache_whose_unpruned_image_was_cropped_away_begins_anew(model):
    inputs, later = batch([prompt(9, 0, 4)]), batch([prompt(9, 0, 4, seed=1)])
    later["input_ids"][0, :9] = inputs["input_ids"][0, :9]
    with apply(model, CONTENT) as handle:
        wanted = model(**later).logits
        with handle.bypassed():
            cache = model(**inputs, use_cache=True).past_key_values
        inside = copy.deepcopy(cache)
        cache.crop(5 - cache.get_seq_length())
        rest = {**later, "input_ids": later["input_ids"][:, 5:], "attention_mask": None}
        logits = model(**rest, past_key_values=cache).logits
        assert (logits - wanted[:, 5:]).abs().max() <= close(model, later)
        assert holds_dropped(cache)
        inside.crop(10 - inside.get_seq_length())  # one token of the image is left
        model(input_ids=later["input_ids"][:, -4:], past_key_values=inside)
        assert not holds_dropped(inside)


def test_a_generator_may_leave_a_bypass_in_another_context(model):
    inputs = batch([prompt(3, 0, 4)])

    def stream(handle):
        with handle.bypassed():
            yield model(**inputs).logits
        yield model(**inputs).logits

    unpruned = model(**inputs).logits
    with apply(model, CONTENT) as handle:
        pieces = stream(handle)
        assert torch.equal(copy_context().run(next, pieces), unpruned)
        assert not torch.equal(copy_context().run(next, pieces), unpruned)
        assert not torch.equal(model(**inputs).logits, unpruned)


def test_a_prompt_that_a_plan_refuses_is_served_while_it_is_off(model):
    inputs = batch([prompt(3, 0)])
    wanted = model(**inputs).logits
    with apply(model, CONTENT) as handle:
        with pytest.raises(UsageError, match="must end with a text token"):
            model(**inputs)
        with handle.bypassed():
            assert torch.equal(model(**inputs).logits, wanted)


def test_a_bypass_concerns_its_own_thread_or_task():
    model, inputs = tiny_llava(n_layers=4), batch([prompt(3, 0, 4)])
    plan = Plan((Cut(1, 0.5, "random"),))
    with torch.no_grad():
        wanted = model(**inputs).logits

    def is_unpruned():
        with torch.no_grad():
            return torch.equal(model(**inputs).logits, wanted)

    async def both():
        async def other():
            return await asyncio.to_thread(is_unpruned)

        task = asyncio.create_task(other())
        with handle.bypassed():
            return await asyncio.to_thread(is_unpruned), await task

    with apply(model, plan) as handle, ThreadPoolExecutor(1) as pool:
        with handle.bypassed():
            assert is_unpruned()
            assert not pool.submit(is_unpruned).result()
        assert asyncio.run(both()) == (True, False)
        with pytest.raises(ValueError, match="stop"), handle.bypassed():
            raise ValueError("stop")
        assert not is_unpruned()
        with handle.bypassed(), handle.bypassed():
            assert is_unpruned()


def test_a_bypass_of_one_model_is_none_of_another():
    one, other = tiny_llava(n_layers=4), tiny_llava(n_layers=4)
    plan = Plan((Cut(1, 0.5, "random"),))
    with apply(one, plan) as handle, apply(other, plan) as pruned, handle.bypassed():
        other(**batch([prompt(3, 0, 4)]))
        assert pruned.last is not None


def test_the_variable_is_logged_and_no_plan_is_measured_under_it(monkeypatch, caplog):
    assert not off_by_variable({})
    assert not off_by_variable({"TPCAL_OFF": ""})
    refuse_off()
    monkeypatch.setenv("TPCAL_OFF", "yes")
    model = tiny_llava(n_layers=4)
    with apply(model, Plan((Cut(1, 0.5, "random"),), name="light")) as handle:
        handle.on()
        assert handle.is_off
    assert "TPCAL_OFF is set, so light is applied but prunes no request." in caplog.text
    assert "so the plan stays switched off" in caplog.text
    with pytest.raises(UsageError, match="must not be set while plans are measured.*'yes'. Unset"):
        applied(model, CONTENT)
