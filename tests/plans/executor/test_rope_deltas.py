"""Conversations with one M-RoPE model that alternate: each goes on at its own positions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from tiny import case
from transformers import DynamicCache

from tpcal.plans.executor.compat import CACHE_NAME
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

HALF = Plan((Cut(2, 0.5, "random"), Cut(5, 0.25, "grid")))
NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"]
WAIT = 60  # seconds after which a thread counts as lost


class Conversation:
    """A prompt and steps after it, without position ids."""

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        self.cache = DynamicCache(config=model.config)
        self.logits = []

    def begin(self):
        self.logits.append(self.model(**self.inputs, **{CACHE_NAME: self.cache}).logits[:, -1])
        return self

    def go_on(self):
        out = self.model(input_ids=torch.tensor([[20]]), **{CACHE_NAME: self.cache})
        self.logits.append(out.logits[:, -1])
        return self


def alone(model, inputs):
    return Conversation(model, inputs).begin().go_on().go_on().logits


@pytest.mark.parametrize("name", NAMES)
def test_conversations_that_alternate_keep_their_positions(name):
    tiny = case(name, "sdpa")
    rows = tiny.rows[:3]  # one image, two others, and text alone
    with apply(tiny.model, HALF):
        wanted = [alone(tiny.model, row) for row in rows[::-1]][::-1]
        talks = [Conversation(tiny.model, row).begin() for row in rows]
        for talk in (*talks, *talks[::-1]):
            talk.go_on()
    for talk, logits in zip(talks, wanted, strict=True):
        assert all(map(torch.equal, talk.logits, logits))


@pytest.mark.parametrize("name", NAMES[1:3])
def test_threads_do_too(name):
    tiny = case(name, "sdpa")
    rows = [*tiny.rows[:2], *tiny.rows[:2]]
    together = Barrier(len(rows), timeout=WAIT)

    def talk(row):
        one = Conversation(tiny.model, row)
        with torch.no_grad():
            for turn in (one.begin, one.go_on, one.go_on):
                together.wait()
                turn()
        return one.logits

    with apply(tiny.model, HALF):
        wanted = [alone(tiny.model, row) for row in rows]
        with ThreadPoolExecutor(len(rows)) as pool:
            found = list(pool.map(talk, rows))
    for mine, logits in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES[:3])
def test_generate_goes_on_at_the_positions_of_the_kept_cache(name):
    tiny = case(name, "sdpa")
    steps = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    rows = tiny.rows[:2]
    said = torch.tensor([[9, 8]])

    def begin(row):
        return tiny.model.generate(**row, **steps, return_dict_in_generate=True)

    def go_on(out):
        ids = torch.cat([out.sequences, said], dim=1)
        more = {
            "attention_mask": torch.ones_like(ids),
            "past_key_values": getattr(out, CACHE_NAME),
        }
        return tiny.model.generate(
            input_ids=ids, **more, **steps, output_logits=True, return_dict_in_generate=True
        ).logits

    with apply(tiny.model, HALF):
        wanted = [go_on(begin(row)) for row in rows]
        begun = [begin(row) for row in rows]
        found = [go_on(out) for out in begun]
    for mine, logits in zip(found, wanted, strict=True):
        assert all(map(torch.equal, mine, logits))


def test_the_methods_are_the_models_own_afterwards():
    model = case("qwen2_vl", "sdpa").model
    with apply(model, HALF):
        assert "compute_3d_position_ids" in vars(model.model)
    assert "compute_3d_position_ids" not in vars(model.model)
    assert "_prepare_position_ids_for_generation" not in vars(model)
