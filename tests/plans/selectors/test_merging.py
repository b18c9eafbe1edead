"""A cut that merges: the tokens that stay carry the states of those that leave."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, SIDE, batch, prompt, rows_alone, tiny_llava
from reference import class_attention, close, positions_of
from tiny import case

from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.laws import LAWS, run
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors._merging import mean_states

PROMPTS = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(7, seed=2),
    prompt(1, 0, 9, seed=3),
]
ZIP = {"contextual_share": 0.5}
OF_GIVEN_PLANS = ("rows alone", "kv cache", "same choice", "static cache", "nested")
"""Laws that look at a plan besides the suite's own; `reference` cannot where tokens merge."""


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_llava(request.param)


def zipped(seen):
    """The 8 tokens of an image that stay by score [16] and keys [16, E], and what goes into each."""
    score, keys = seen[:, 0].tolist(), torch.nn.functional.normalize(seen[:, 1:], dim=-1)
    dominant = sorted(range(N_IMAGE), key=lambda i: -score[i])[:4]
    rest = [i for i in range(N_IMAGE) if i not in dominant]
    contextual = rest[::3]
    members = {i: [i] for i in dominant + contextual}
    for i in rest:
        if i not in contextual:
            nearest = max(contextual, key=lambda j: float(keys[i] @ keys[j]))
            members[nearest].append(i)
    return members


def quartered(seen):
    """The corner of every 2 x 2 square, and its tokens."""
    corners = [i * SIDE + j for i in (0, 2) for j in (0, 2)]
    return {c: [c, c + 1, c + SIDE, c + SIDE + 1] for c in corners}


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize(
    ("keep", "selector", "params", "by_hand"),
    [(0.5, "visionzip", ZIP, zipped), (0.25, "pooling", {}, quartered)],
)
def test_a_prefill_equals_one_whose_states_were_replaced_by_hand(
    model, layer, keep, selector, params, by_hand
):
    inputs = batch(PROMPTS)
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    with apply(model, Plan((Cut(layer, keep, selector, params),))) as handle:
        logits = model(**inputs, position_ids=positions_of(real)).logits
        kept = handle.last.cuts[0].kept
    places = [(row == IMAGE).nonzero()[:, 0].tolist() for row in ids]
    seen = iter(class_attention(model, inputs["pixel_values"]))
    groups = []  # of each row: place of a token that stays -> places it is the mean of
    for row in places:
        images = [row[i : i + N_IMAGE] for i in range(0, len(row), N_IMAGE)]
        members = [(by_hand(next(seen)), image) for image in images]
        groups.append({im[i]: [im[j] for j in js] for m, im in members for i, js in m.items()})
    stay = [[place in group for place in row] for row, group in zip(places, groups, strict=True)]
    assert kept == tuple(tuple(i for i, s in enumerate(row) if s) for row in stay)

    def replace(module, args, kwargs):
        states = args[0].clone()
        for b, group in enumerate(groups):
            for place, members in group.items():
                states[b, place] = sum(args[0][b, member] for member in members) / len(members)
        return (states, *args[1:]), kwargs

    layers = find(model).layers(model)
    with ExitStack() as undo:
        hidden = hidden_tokens(ids == IMAGE, handle.last.cuts, N_LAYERS)
        undo.enter_context(hiding(model, hidden))
        without = model(**inputs, position_ids=positions_of(real), use_cache=False).logits
        undo.callback(layers[layer].register_forward_pre_hook(replace, with_kwargs=True).remove)
        wanted = model(**inputs, position_ids=positions_of(real), use_cache=False).logits
    text = (ids != IMAGE) & real
    allowed = close(model, inputs)
    assert (logits - wanted)[text].abs().max() <= allowed
    assert (logits - without)[text].abs().max() > 1000 * allowed  # merging makes a difference


@pytest.mark.parametrize("selector", ["visionzip", "vispruner", "pooling"])
@pytest.mark.parametrize("layer", [0, 3])
def test_keeping_everything_changes_no_bit(model, selector, layer):
    inputs = batch(PROMPTS)
    before = model(**inputs).logits
    with apply(model, Plan((Cut(layer, 1.0, selector),))):
        assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("selector", ["visionzip", "vispruner", "pooling"])
def test_rows_of_a_batch_equal_the_rows_alone(model, selector):
    inputs = batch(PROMPTS)
    allowed = close(model, inputs)
    with apply(model, Plan((Cut(0, 0.6, selector), Cut(3, 0.3, selector)))) as handle:
        together = model(**inputs, position_ids=positions_of(inputs["attention_mask"])).logits
        cuts = handle.last.cuts
        for b, row in enumerate(rows_alone(inputs)):
            alone = model(**row).logits
            assert (together[b, -1] - alone[0, -1]).abs().max() <= allowed
            if "pixel_values" in row:
                assert [cut.kept[0] for cut in handle.last.cuts] == [cut.kept[b] for cut in cuts]


@pytest.mark.parametrize("selector", ["visionzip", "pooling"])
def test_cached_decoding_equals_a_pass_over_everything(model, selector):
    """Caches hold the tokens that stay at their own positions, with the merged states' keys."""
    inputs = batch(PROMPTS[:2])
    real = inputs["attention_mask"]
    with apply(model, Plan((Cut(2, 0.5, selector),))):
        out = model(**inputs, position_ids=positions_of(real), use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        longer = torch.cat([real, real.new_ones(2, 1)], dim=1)
        step = model(
            input_ids=token,
            attention_mask=longer,
            position_ids=positions_of(longer)[:, -1:],
            past_key_values=out.past_key_values,
        ).logits[:, -1]
        ids = torch.cat([inputs["input_ids"], token], dim=1)
        full = {**inputs, "input_ids": ids, "attention_mask": longer}
        whole = model(**full, position_ids=positions_of(longer)).logits[:, -1]
    assert (step - whole).abs().max() <= close(model, inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_laws_hold_for_plans_that_read_the_tower_and_merge(name):
    """Those that look at a given plan; tests/plans/test_laws.py tries the others on these models."""
    plan = Plan((Cut(0, 0.6, "vispruner"), Cut(2, 0.4, "visionzip"), Cut(4, 0.2, "pooling")))
    laws = [law for law in LAWS if law.name in OF_GIVEN_PLANS]
    verdicts = list(run(case(name, "sdpa"), laws, plan))
    assert not [(v.law.name, v.detail) for v in verdicts if not v.holds]
    assert len(verdicts) == len(OF_GIVEN_PLANS)


def test_half_precision_stays_half(model):
    half = tiny_llava(dtype=torch.bfloat16)
    inputs = batch(PROMPTS)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with apply(half, Plan((Cut(0, 0.5, "visionzip"), Cut(2, 0.3, "pooling")))):
        logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


INTO = torch.tensor([[0, 0, 2, -1, 2], [1, 1, -1, 3, 1]])
"""Tokens 0 and 2 of the first row stay, 1 and 3 of the second; one of each row merges into none."""
STATES = torch.arange(20.0).view(2, 5, 2) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_states_are_means_with_the_weights_of_the_tokens(dtype):
    states, sizes = STATES.to(dtype), torch.tensor([[1.0, 3, 5, 100, 2], [4, 2, 100, 9, 2]])
    found = mean_states(states, INTO, None, sizes)
    wide = states.double()
    assert found.dtype == dtype
    for row, kept, weights in (
        (0, 0, {0: 1, 1: 3}),
        (0, 2, {2: 5, 4: 2}),
        (1, 1, {0: 4, 1: 2, 4: 2}),
        (1, 3, {3: 9}),
    ):
        total = sum(weight * wide[row, at] for at, weight in weights.items())
        assert torch.equal(found[row, kept], (total / sum(weights.values())).to(dtype))


def test_weights_that_are_equal_give_the_plain_mean():
    plain = mean_states(STATES, INTO)
    for sizes in (torch.ones(2, 5), torch.full((2, 5), 4.0)):
        torch.testing.assert_close(mean_states(STATES, INTO, 2, sizes), plain)
    alone = mean_states(STATES, torch.arange(5).expand(2, 5), None, torch.full((2, 5), 3.0))
    assert torch.equal(alone, STATES)  # no bit of a token changes that stands for no other
