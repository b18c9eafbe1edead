"""A replay makes the very cuts that production makes."""

from __future__ import annotations

from functools import lru_cache

import flash
import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, batch, prompt, tiny_llava
from reference import close, positions_of
from releases import skip_elsewhere

from tpcal.calibrate.tape import Tape
from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.plan_records import MERGES, Condition, Cut, Plan

PROMPTS = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(6, seed=2),
    prompt(1, 0, 7, seed=3),
]
ANSWERS = [[11, 12, 13], [21, 22, 23], [31, 32, 33], [41, 42, 43]]
PLANS = {
    "one cut": (Cut(3, 0.25, "attention"),),
    "diverse": (Cut(2, 0.5, "diversity"), Cut(5, 0.2, "balanced")),
    "keys": (Cut(2, 0.3, "dart"), Cut(3, 0.2, "attention")),
    "attention in a row": (Cut(1, 0.6, "attention"), Cut(2, 0.4, "attention"), Cut(6, 0.0)),
    "before the decoder": (Cut(0, 0.3, "random"), Cut(4, 0.0)),
    "conditional": (Cut(2, 0.5, "grid"), Cut(4, 0.0, condition=Condition(0.35, 0.9))),
    "text": (Cut(1, 0.6, "cdpruner"), Cut(2, 0.4, "sparsevlm"), Cut(5, 0.2, "sparsevlm")),
    "vision": (Cut(0, 0.6, "vispruner"), Cut(3, 0.3, "visionzip")),
    "merging": (Cut(2, 0.5, "pooling"), Cut(4, 0.2, "visionzip", {"contextual_share": 0.6})),
    "last layer": (Cut(N_LAYERS - 1, 0.0),),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return tiny_llava(request.param)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def teacher_forced(side="left"):
    """Inputs with answers, prompt lengths, positions that predict the answer tokens and the one after."""
    inputs = batch([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)], side=side)
    lengths = torch.tensor([len(p) for p in PROMPTS])
    first = inputs["attention_mask"].long().argmax(dim=1)  # first real token
    positions = (first + lengths)[:, None] + torch.arange(-1, len(ANSWERS[0]))
    return inputs, lengths, positions


@lru_cache(maxsize=4)  # calibration replays all plans from one tape, too
def recorded(model, side, every_layer):
    """The tape of `teacher_forced`."""
    inputs, lengths, _ = teacher_forced(side)
    return Tape.record(model, inputs, prompt_length=lengths, every_layer=every_layer)


@lru_cache(maxsize=2)
def most(model, side):
    """Largest difference of the logits of `teacher_forced` that counts as none."""
    return close(model, teacher_forced(side)[0])


@lru_cache(maxsize=1)  # the tapes of a plan follow each other
def production(model, cuts, scope="prompt", merge=None):
    """Answer logits [B, A, V] of a cached decode under `apply`, kept sets, masses."""
    inputs = batch(PROMPTS)
    real = inputs["attention_mask"]
    answers = torch.tensor(ANSWERS)
    with apply(model, Plan(cuts, scope=scope, merge=merge)) as handle:
        out = model(**inputs, position_ids=positions_of(real), use_cache=True)
        logits = [out.logits[:, -1]]
        records = handle.last.cuts
        for step in range(answers.shape[1]):
            real = torch.cat([real, torch.ones(len(real), 1, dtype=real.dtype)], dim=1)
            out = model(
                input_ids=answers[:, step : step + 1],
                attention_mask=real,
                position_ids=positions_of(real)[:, -1:],
                past_key_values=out.past_key_values,
            )
            logits.append(out.logits[:, -1])
    return torch.stack(logits, 1), records


@pytest.mark.parametrize("every_layer", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cuts", PLANS.values(), ids=PLANS)
def test_a_replay_gives_the_answer_logits_of_production(model, cuts, side, every_layer):
    *_, positions = teacher_forced(side)
    tape = recorded(model, side, every_layer)
    replayed = tape.replay(cuts, positions)
    logits, records = production(model, cuts)
    assert [r.kept for r in replayed.records] == [r.kept for r in records]
    allowed = most(model, side)
    assert (replayed.logits - logits).abs().max() <= allowed
    changed = (tape.logits(positions) - replayed.logits).abs().amax(dim=(1, 2))
    assert changed[[0, 1, 3]].max() > 1000 * allowed  # the plan does something
    assert changed[2] <= allowed  # and nothing to the row without an image
    for mine, theirs in zip(replayed.records, records, strict=True):
        if theirs.text_to_visual is not None:
            torch.testing.assert_close(mine.text_to_visual, theirs.text_to_visual, equal_nan=True)


@pytest.mark.parametrize("scope", ["image", "prompt"])
@pytest.mark.parametrize("merge", MERGES)
def test_a_replay_merges_what_production_merges(model, scope, merge):
    cuts, (*_, positions) = PLANS["diverse"], teacher_forced()
    tape = recorded(model, "left", False)
    replayed = tape.replay(cuts, positions, Plan(scope=scope, merge=merge))
    logits, records = production(model, cuts, scope, merge)
    assert [r.kept for r in replayed.records] == [r.kept for r in records]
    allowed = most(model, "left")
    assert (replayed.logits - logits).abs().max() <= allowed
    for other in {None, *MERGES} - {merge}:
        without = tape.replay(cuts, positions, Plan(scope=scope, merge=other)).logits
        assert (replayed.logits - without).abs().max() > 1000 * allowed


@pytest.mark.parametrize("merge", MERGES)
def test_a_replay_merges_over_a_flash_kernel_as_over_another(merge):
    cuts, (inputs, lengths, positions) = PLANS["diverse"], teacher_forced()
    flashing, sdpa = tiny_llava(flash.NAME), tiny_llava()
    tapes = [
        Tape.record(model, inputs, prompt_length=lengths, every_layer=False)
        for model in (flashing, sdpa)
    ]
    found, wanted = (tape.replay(cuts, positions, Plan(merge=merge)).logits for tape in tapes)
    allowed = most(sdpa, "left")
    assert (found - wanted).abs().max() <= allowed
    for other in {None, *MERGES} - {merge}:
        without = tapes[0].replay(cuts, positions, Plan(merge=other)).logits
        assert (found - without).abs().max() > 1000 * allowed


@pytest.mark.parametrize("name", ["diverse", "keys", "vision"])
def test_a_replay_keeps_of_every_image_what_production_keeps(model, name):
    inputs, lengths, positions = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    replayed = tape.replay(PLANS[name], positions, Plan(scope="image"))
    logits, records = production(model, PLANS[name], "image")
    assert [r.kept for r in replayed.records] == [r.kept for r in records]
    assert (replayed.logits - logits).abs().max() <= close(model, inputs)
    of_prompt = tape.replay(PLANS[name], positions)
    one, two = 0, 1  # images in the prompt
    scopes_differ = not torch.equal(replayed.logits[two], of_prompt.logits[two])
    if not scopes_differ:  # by chance; the release decides how weights are drawn
        skip_elsewhere("these weights choose the same tokens in both scopes")
    assert scopes_differ
    assert torch.allclose(replayed.logits[one], of_prompt.logits[one], atol=close(model, inputs))


def test_the_tape_holds_the_unpruned_pass(model):
    inputs, lengths, positions = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    out = model(
        **inputs, position_ids=positions_of(inputs["attention_mask"]), output_hidden_states=True
    )
    rows = torch.arange(4)[:, None]
    assert torch.equal(tape.logits(positions), out.logits[rows, positions])
    for layer in range(N_LAYERS):
        assert torch.equal(tape.state(layer), out.hidden_states[layer])
    normed = find(model).final_norm(model)(tape.state(N_LAYERS))
    assert torch.equal(normed, out.hidden_states[N_LAYERS])
    assert (tape.n_layers, tape.batch_size) == (N_LAYERS, 4)
    assert torch.equal(tape.visual_mask, inputs["input_ids"] == IMAGE)
    real = inputs["attention_mask"].bool()
    assert torch.equal(tape.text_mask, real & ~tape.visual_mask)


def test_a_replay_that_keeps_everything_equals_the_recording(model):
    inputs, lengths, positions = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    replayed = tape.replay([Cut(4, 1.0, "random")], positions)
    assert torch.equal(replayed.logits, tape.logits(positions))
    assert torch.equal(replayed.first_output, tape.state(5))
    assert torch.equal(replayed.kept_mask, inputs["attention_mask"].bool())


def test_the_first_output_stands_at_the_places_of_the_tokens_that_stayed(model):
    inputs, lengths, positions = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    replayed = tape.replay([Cut(4, 0.25, "grid")], positions)
    assert replayed.first_output.shape == tape.state(5).shape
    assert torch.equal(replayed.first_output.abs().sum(-1) > 0, replayed.kept_mask)
    assert torch.equal(replayed.kept_mask & ~tape.visual_mask, tape.text_mask)
    n_images = torch.tensor([1, 2, 0, 1])
    kept = (replayed.kept_mask & tape.visual_mask).sum(1)
    assert torch.equal(kept, n_images * N_IMAGE // 4)


def test_attention_masses_equal_those_of_the_attention_matrices():
    model = tiny_llava("eager")
    inputs, lengths, _ = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    real = inputs["attention_mask"]
    out = model(**inputs, position_ids=positions_of(real), output_attentions=True)
    for layer in (0, 3, N_LAYERS - 1):
        t2v, v2t = tape.attention_mass(layer)
        weights = out.attentions[layer].mean(dim=1)  # [B, S, S]
        for row, ids in enumerate(inputs["input_ids"]):
            visual = ids == IMAGE
            end = int(real[row].argmax() + lengths[row])
            place = torch.arange(len(ids))
            if not visual.any():
                assert t2v[row].isnan()
                assert v2t[row].isnan()
                continue
            text = ~visual & (place > visual.long().argmax()) & (place < end)
            wanted = weights[row][text][:, visual].sum(-1).mean()
            torch.testing.assert_close(t2v[row], wanted, atol=1e-6, rtol=1e-5)
            wanted = weights[row][visual][:, text].sum(-1).mean()
            torch.testing.assert_close(v2t[row], wanted, atol=1e-6, rtol=1e-5)
    assert v2t[1] > 0  # two images with text between them


def test_turned_is_the_share_of_visual_states_below_the_cosine(model):
    inputs, lengths, _ = teacher_forced()
    tape = Tape.record(model, inputs, prompt_length=lengths)
    cosine = torch.cosine_similarity(tape.state(3), tape.state(4), dim=-1)
    tau = float(cosine[tape.visual_mask].median())
    turned = tape.turned(3, tau)
    for row in (0, 1, 3):
        wanted = (cosine[row][tape.visual_mask[row]] < tau).float().mean()
        assert turned[row] == wanted
    assert turned[2].isnan()
    assert 0 < turned[0] < 1 or 0 < turned[1] < 1


def test_recording_leaves_the_model_as_it_was(model):
    inputs, lengths, positions = teacher_forced()
    configs = [layer.self_attn.config for layer in find(model).layers(model)]
    before = model(**inputs).logits
    Tape.record(model, inputs, prompt_length=lengths).replay(PLANS["keys"], positions)
    layers = find(model).layers(model)
    assert torch.equal(model(**inputs).logits, before)
    assert all(layer.self_attn.config is c for layer, c in zip(layers, configs, strict=True))
    assert not any(layer._forward_pre_hooks for layer in layers)


def test_a_tape_refuses_a_model_with_a_plan(model):
    inputs, _, _ = teacher_forced()
    with apply(model, Plan((Cut(2, 0.0),))), pytest.raises(UsageError, match="unpruned model"):
        Tape.record(model, inputs)


def test_a_replay_needs_cuts_the_model_has_layers_for(model):
    inputs, _, positions = teacher_forced()
    tape = Tape.record(model, inputs)
    with pytest.raises(ValueError, match="at layers below 8"):
        tape.replay([], positions)
    with pytest.raises(ValueError, match="at layers below 8"):
        tape.replay([Cut(8, 0.0)], positions)
