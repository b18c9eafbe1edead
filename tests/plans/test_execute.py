"""The laws of the executor on a tiny LLaVA."""

from __future__ import annotations

import pytest
import torch
from models import IMAGE, N_LAYERS, batch, prompt, rows_alone, tiny_llava
from reference import hidden_from, hiding, positions_of

from tpcal.plans.execute import apply
from tpcal.plans.families import find
from tpcal.plans.schema import Condition, Cut, Plan

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")

CLOSE = 1e-5
MIXED = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(7, seed=2),
    prompt(1, 0, 9, seed=3),
]
PLANS = {
    "content": Plan((Cut(2, 0.5, "random"), Cut(4, 0.25, "grid"), Cut(6, 0.0))),
    "attention": Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "attention"), Cut(6, 0.0))),
    "drop all before the decoder": Plan((Cut(0, 0.0),)),
    "drop all in the middle": Plan((Cut(4, 0.0),)),
    "drop all at the last layer": Plan((Cut(N_LAYERS - 1, 0.0),)),
    "before the decoder": Plan((Cut(0, 0.3, "random"), Cut(1, 0.2, "attention"))),
    "conditional": Plan((Cut(3, 0.5, "grid"), Cut(5, 0.0, condition=Condition(0.3)))),
}
KEEP_ALL = Plan((Cut(1, 1.0, "attention"), Cut(3, 1.0, "random")))


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_llava(request.param)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def greedy(model, inputs, n_steps, teacher=None, **kwargs):
    """Logits [B, 1 + n_steps, V] of prefill and cached decode steps, the cache, and the tokens fed."""
    real = inputs["attention_mask"]
    out = model(**inputs, position_ids=positions_of(real), use_cache=True, **kwargs)
    logits, tokens = [out.logits[:, -1]], []
    for step in range(n_steps):
        token = logits[-1].argmax(-1) if teacher is None else teacher[:, step]
        tokens.append(token)
        real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
        out = model(
            input_ids=token[:, None],
            attention_mask=real,
            position_ids=positions_of(real)[:, -1:],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        logits.append(out.logits[:, -1])
    return torch.stack(logits, 1), out.past_key_values, torch.stack(tokens, 1)


def reference(model, inputs, tokens, cuts):
    """Logits [B, S, V] of prompt and tokens with the dropped tokens hidden."""
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    real = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
    hidden = hidden_from(ids, [(c.layer, c.kept) for c in cuts], N_LAYERS)
    full = {**inputs, "input_ids": ids, "attention_mask": real}
    with hiding(find(model).layers(model), hidden, real.bool()):
        return model(**full, position_ids=positions_of(real), use_cache=False).logits


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_plan_that_keeps_everything_changes_no_bit(model, side):
    inputs = batch(MIXED, side=side)
    before = model(**inputs).logits
    with apply(model, KEEP_ALL):
        assert torch.equal(model(**inputs).logits, before)


def test_generation_with_a_plan_that_keeps_everything_changes_no_bit(model):
    inputs = batch(MIXED)
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    before = model.generate(**inputs, **options)
    with apply(model, KEEP_ALL):
        after = model.generate(**inputs, **options)
    assert torch.equal(before.sequences, after.sequences)
    assert all(map(torch.equal, before.logits, after.logits))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_prefill_and_decode_equal_the_mask_based_reference(model, plan):
    inputs = batch(MIXED)
    with apply(model, plan) as handle:
        prefill = model(**inputs, position_ids=positions_of(inputs["attention_mask"])).logits
        logits, _, tokens = greedy(model, inputs, 5)
        cuts = handle.last.cuts
    assert len(cuts) == len(plan.cuts)
    wanted = reference(model, inputs, tokens, cuts)
    length = inputs["input_ids"].shape[1]
    assert (logits - wanted[:, length - 1 :]).abs().max() <= CLOSE
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    assert (prefill - wanted[:, :length])[text].abs().max() <= CLOSE
    unpruned = model(**inputs, position_ids=positions_of(inputs["attention_mask"])).logits
    if any(
        row != tuple(range(n)) for row, n in zip(cuts[-1].kept, handle.last.n_visual, strict=True)
    ):
        assert (prefill - unpruned)[text].abs().max() > 1000 * CLOSE  # the test sees the plan


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_right_padded_forward_equals_the_mask_based_reference(model, plan):
    inputs = batch(MIXED, side="right")
    with apply(model, plan) as handle:
        logits = model(**inputs).logits
        cuts = handle.last.cuts
    nothing = inputs["input_ids"][:, :0]
    real = inputs["attention_mask"].bool()
    text = (inputs["input_ids"] != IMAGE) & real
    assert (logits - reference(model, inputs, nothing, cuts))[text].abs().max() <= CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_rows_of_a_batch_equal_the_rows_alone(model, plan, side):
    inputs = batch(MIXED, side=side)
    positions = positions_of(inputs["attention_mask"])
    with apply(model, plan) as handle:
        together = model(**inputs, position_ids=positions).logits
        kept = [cut.kept for cut in handle.last.cuts]
        for row, alone in enumerate(rows_alone(inputs)):
            real = inputs["attention_mask"][row].bool()
            single = model(**alone).logits[0]
            text = alone["input_ids"][0] != IMAGE
            assert (together[row][real] - single)[text].abs().max() <= CLOSE
            if IMAGE in alone["input_ids"]:
                assert [cut.kept[0] for cut in handle.last.cuts] == [k[row] for k in kept]


@pytest.mark.parametrize("name", ["content", "attention", "conditional"])
def test_generated_rows_of_a_batch_equal_the_rows_alone(model, name):
    inputs = batch(MIXED)
    with apply(model, PLANS[name]):
        together = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, -6:]
        for row, alone in enumerate(rows_alone(inputs)):
            single = model.generate(**alone, max_new_tokens=6, do_sample=False)[:, -6:]
            assert torch.equal(single[0], together[row])
