"""Turns through `generate`, caches cropped into an image, and calls that are refused."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, batch, prompt, rows_alone, tiny_llava
from reference import close, positions_of
from releases import require_unpruned, skip_elsewhere
from transformers import DynamicCache, LogitsProcessor

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply, kv_bytes
from tpcal.plans.executor.pruned_layers import PrunedKV
from tpcal.plans.families import find
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.plan_records import Cut, Plan

pytestmark = pytest.mark.versions

FIRST = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]
PLAN = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
EARLY = Plan((Cut(0, 0.4, "random"), Cut(3, 0.1, "attention")))
PLANS = {"inside": PLAN, "from layer 0": EARLY}
STEPS = {"max_new_tokens": 6, "do_sample": False}


class Turns:
    """Feeds chunks to a model with one cache, and remembers what the mask-based reference needs."""

    def __init__(self, model):
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.real = self.embeds = self.hidden = None

    def feed(self, inputs, handle=None):
        """Logits of the new tokens under the plan; ``handle`` where they hold images."""
        start = self.cache.get_seq_length()
        ids = inputs["input_ids"]
        real = inputs["attention_mask"]
        self.real = torch.cat([self.real, real], dim=1) if start else real

        def before_decoder(module, args, kwargs):
            new = kwargs["inputs_embeds"]
            self.embeds = torch.cat([self.embeds, new], dim=1) if start else new

        decoder = find(self.model).decoder(self.model)
        hook = decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
        logits = self.model(
            **{**inputs, "attention_mask": self.real},
            position_ids=positions_of(self.real)[:, start:],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        hook.remove()
        hidden = hidden_tokens(ids == IMAGE, handle.last.cuts if handle else (), N_LAYERS)
        self.hidden = torch.cat([self.hidden, hidden], dim=2) if start else hidden
        return logits

    def crop(self, n):
        self.cache.crop(-n)
        self.real, self.embeds = self.real[:, :-n], self.embeds[:, :-n]
        self.hidden = self.hidden[..., :-n]

    def wanted(self):
        """Logits of everything fed, with the dropped tokens hidden."""
        with hiding(self.model, self.hidden):
            states = find(self.model).decoder(self.model)(
                inputs_embeds=self.embeds,
                attention_mask=self.real,
                position_ids=positions_of(self.real),
                use_cache=False,
            )
        return self.model.lm_head(states.last_hidden_state)


@pytest.mark.parametrize("n_gone", [2, 5, 12, 30])
def test_decoding_after_a_crop_equals_the_reference(model, n_gone):
    first = batch([prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1)])
    words = batch([[7, 8, 9], [10, 11, 12]])
    for plan in PLANS.values():
        with apply(model, plan) as handle:
            turns = Turns(model)
            turns.feed(first, handle)
            turns.feed(words)
            turns.crop(n_gone)
            assert turns.cache.get_seq_length() == turns.real.shape[1]
            logits = torch.cat([turns.feed(batch([[30], [31]])) for _ in range(3)], 1)
        wanted = turns.wanted()
        assert float((logits - wanted[:, -3:]).abs().max()) <= close(model, first)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_generate_goes_on_with_a_kept_cache(model, plan):
    first = rows_alone(batch(FIRST))[1]
    with apply(model, plan) as handle:
        out = model.generate(**first, **STEPS, return_dict_in_generate=True)
        reply = torch.tensor([[9, 8, 7]])
        ids = torch.cat([out.sequences, reply], dim=1)
        more = model.generate(
            input_ids=ids,
            past_key_values=out.past_key_values,
            attention_mask=ids.new_ones(ids.shape),
            **STEPS,
        )
        cuts = handle.last.cuts
    sequence = more[:, :-1]
    with hiding(model, hidden_tokens(sequence == IMAGE, cuts, N_LAYERS)):
        full = {"input_ids": sequence, "pixel_values": first["pixel_values"]}
        logits = model(**full, use_cache=False).logits
    assert torch.equal(logits[:, -6:].argmax(-1), more[:, -6:])


def test_generate_takes_a_new_image_in_a_second_turn(model):
    first = rows_alone(batch(FIRST))[0]
    second = batch([prompt(0, 6, seed=4)], seed=9)
    with apply(model, PLAN) as handle:
        out = model.generate(**first, **STEPS, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, second["input_ids"]], dim=1)
        more = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=second["pixel_values"],
            past_key_values=out.past_key_values,
            **STEPS,
        )
        assert handle.last.n_visual == (N_IMAGE,)
        assert handle.last.lengths == (24, 24, 16, 16, 12, 12, 8, 8)
        turns = Turns(model)
        turns.feed(first, handle=None)
        turns.feed(batch([out.sequences[0, first["input_ids"].shape[1] :].tolist()]))
        turns.feed(second)
        logits = [turns.feed(batch([[token]]))[:, -1] for token in more[0, -6:-1].tolist()]
    assert torch.equal(torch.cat(logits).argmax(-1), more[0, -5:])


def test_a_cache_made_without_a_config_is_pruned_too(model):
    inputs = rows_alone(batch(FIRST))[0]
    with apply(model, PLAN):
        wanted = model(**inputs, use_cache=True).past_key_values
        cache = DynamicCache()
        model(**inputs, past_key_values=cache, use_cache=True)
    assert kv_bytes(cache) == kv_bytes(wanted)
    assert isinstance(cache.layers[2], PrunedKV)


def test_embeddings_of_placeholders_are_recognised(model):
    inputs = rows_alone(batch(FIRST))[1]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeds, "pixel_values": inputs["pixel_values"]}
    with apply(model, PLAN) as handle:
        wanted = model(**inputs).logits
        kept = [cut.kept for cut in handle.last.cuts]
        assert torch.equal(model(**given).logits, wanted)
        assert [cut.kept for cut in handle.last.cuts] == kept


def test_a_conversation_goes_on_after_the_handle_was_removed(model):
    inputs = rows_alone(batch(FIRST))[1]
    token = torch.tensor([[9]])
    if model.config.text_config._attn_implementation != "sdpa":
        pytest.skip("eager attention always gets a mask, of the unpruned length")
    with apply(model, PLAN):
        cache = model(**inputs, use_cache=True).past_key_values
        wanted = model(input_ids=token, past_key_values=cache).logits
        cache.crop(-1)
    assert torch.equal(model(input_ids=token, past_key_values=cache).logits, wanted)


def test_a_turn_of_text_is_the_same_under_any_plan(model):
    inputs = rows_alone(batch(FIRST))[1]
    words, n = torch.tensor([[9, 8, 9]]), inputs["input_ids"].shape[1]
    logits = []
    for later in (PLAN, Plan((Cut(2, 0.25, "grid"),)), Plan()):
        with apply(model, PLAN):
            cache = model(**inputs, use_cache=True).past_key_values
        with apply(model, later):
            turn = {"input_ids": words, "attention_mask": torch.ones(1, n + 3, dtype=torch.int64)}
            logits.append(model(**turn, past_key_values=cache).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_unknown_cache_layers_are_refused_with_a_way_out(model):
    cache = DynamicCache(config=model.config)
    cache.layers[3] = type("UnknownLayer", (type(cache.layers[3]),), {})()
    options = {"past_key_values": cache}
    wanted = "got UnknownLayer.*Leave out cache_implementation"
    with apply(model, PLAN), pytest.raises(UsageError, match=wanted):
        model.generate(**batch(FIRST), **STEPS, **options)


def test_chunked_prefill_is_refused(model):
    inputs = batch(FIRST)
    with apply(model, PLAN), pytest.raises(UsageError, match="prefill_chunk_size must be None"):
        model.generate(**inputs, **STEPS, prefill_chunk_size=10)
    assert "_prefill" not in vars(model)


def test_drafts_of_an_assistant_model_change_no_token(model):
    inputs = batch([prompt(3, 0, 4)])
    assistant = tiny_llava(n_layers=2)
    drafted = model.generate(**inputs, **STEPS, assistant_model=assistant)
    assert torch.equal(drafted, model.generate(**inputs, **STEPS))
    with apply(model, PLAN):
        wanted = model.generate(**inputs, **STEPS)
        assert torch.equal(model.generate(**inputs, **STEPS, assistant_model=assistant), wanted)


@pytest.mark.parametrize("how", ["crop", "reset"])
def test_a_prompt_after_drafts_on_the_same_cache_is_read_to_its_end(model, how):
    first, second = batch([prompt(3, 0, 2)]), batch([prompt(3, 0, 30)])
    plan = Plan((Cut(2, 0.5, "attention"),))
    with apply(model, plan) as handle:
        model.generate(**second, **STEPS)
        wanted = handle.last.cuts[0].kept
        cache = DynamicCache(config=model.config)
        model.generate(
            **first, **STEPS, past_key_values=cache, assistant_model=tiny_llava(n_layers=2)
        )
        cache.reset() if how == "reset" else cache.crop(1 - cache.get_seq_length())
        if how == "reset" and cache.get_seq_length():
            skip_elsewhere("a cache that is reset keeps zeros in its length")
        model.generate(**second, **STEPS, past_key_values=cache)
        assert handle.last.cuts[0].kept == wanted


class Says(LogitsProcessor):
    """Makes a model say one word for ever."""

    def __init__(self, word: int) -> None:
        self.word = word

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([self.word]), 0)


@pytest.mark.parametrize("n_drafts", [4, 60])
def test_drafts_that_repeat_an_image_are_no_image(model, n_drafts):
    inputs, word, reports = batch([prompt(3, 0, 4)]), 55, []
    inputs["input_ids"][0, (inputs["input_ids"][0] == IMAGE).nonzero()[0, 0] - 1] = word
    options = {"prompt_lookup_num_tokens": n_drafts, "logits_processor": [Says(word)]}
    require_unpruned(lambda: model.generate(**inputs, **STEPS, **options))
    with apply(model, PLAN, on_report=reports.append) as handle:
        model.generate(**inputs, **STEPS, **options)
        drafted = handle.last.lengths
        model.generate(**inputs, **STEPS)
        assert len(reports) == 2  # one a request
        assert drafted == handle.last.lengths


def test_a_prompt_that_ends_with_an_image_is_refused(model):
    inputs = batch([prompt(3, 0)])
    with apply(model, PLAN), pytest.raises(UsageError, match="must end with a text token"):
        model(**inputs)
