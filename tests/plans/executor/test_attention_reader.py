"""What a selector is given: scores, keys, grids and text, against the model's own attention."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch
from models import IMAGE, N_IMAGE, SIDE, batch, prompt, tiny_llava
from reference import positions_of
from transformers import GptOssConfig, InternVLConfig, InternVLForConditionalGeneration

from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.attention_reader import warn_out_of_sight
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors.attention import Attention
from tpcal.plans.selectors.dart import Dart
from tpcal.plans.selectors.sparsevlm import Sparsevlm

MIXED = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1), prompt(7, seed=2)]


@pytest.fixture
def seen(monkeypatch):
    """The tokens every selector was given, in order."""
    seen = []
    for kind in (Attention, Dart, Sparsevlm):
        select = kind.select

        def spy(self, tokens, n_keep, select=select):
            seen.append((tokens, n_keep))
            return select(self, tokens, n_keep)

        monkeypatch.setattr(kind, "select", spy)
    return seen


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_those_of_the_attention_matrix(attn, side, seen):
    inputs = batch(MIXED, side=side)
    real = inputs["attention_mask"].bool()
    options = {"position_ids": positions_of(inputs["attention_mask"])}
    model = tiny_llava(attn)
    with apply(model, Plan((Cut(3, 0.5, "attention"),))):
        model(**inputs, **options)
    weights = tiny_llava("eager")(**inputs, **options, output_attentions=True).attentions[2]
    tokens, n_keep = seen[0]
    assert n_keep.tolist() == [8, 16, 0]
    softmax = (tokens.logits - tokens.lse[..., None]).exp()  # [B, H, N]
    for row, ids in enumerate(inputs["input_ids"]):
        last = int(real[row].nonzero()[-1])
        visual = (ids == IMAGE).nonzero()[:, 0]
        wanted = weights[row, :, last][:, visual]
        got = softmax[row][:, tokens.valid[row]]
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)


def test_scores_after_a_first_cut_are_those_of_the_tokens_left(seen):
    inputs = batch(MIXED)
    model = tiny_llava()
    with apply(model, Plan((Cut(1, 0.5, "attention"), Cut(3, 0.25, "attention")))) as handle:
        model(**inputs)
    tokens = seen[1][0]
    assert tokens.index[0][tokens.valid[0]].tolist() == list(handle.last.cuts[0].kept[0])
    assert tokens.n_original.tolist() == [N_IMAGE, 2 * N_IMAGE, 0]
    shares = (tokens.logits - tokens.lse[..., None]).exp().masked_fill(~tokens.valid[:, None], 0)
    assert bool((shares.sum(-1) <= 1).all())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [1, 2**23])
def test_text_attention_is_that_of_the_attention_matrix(attn, side, chunk, seen, monkeypatch):
    monkeypatch.setattr("tpcal.plans.executor.attention_reader.CHUNK", chunk)
    inputs = batch(MIXED, side=side)
    options = {"position_ids": positions_of(inputs["attention_mask"])}
    model = tiny_llava(attn)
    with apply(model, Plan((Cut(3, 0.5, "sparsevlm"),))):
        model(**inputs, **options)
    weights = tiny_llava("eager")(**inputs, **options, output_attentions=True).attentions[2]
    tokens = seen[0][0]
    for row, ids in enumerate(inputs["input_ids"]):
        visual = ids == IMAGE
        text = inputs["attention_mask"][row].bool() & ~visual & (visual.cumsum(0) > 0)
        wanted = weights[row].mean(0)[text][:, visual]
        got = tokens.text_attention[row][tokens.text_valid[row]][:, tokens.valid[row]]
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    filler = ~(tokens.text_valid[:, :, None] & tokens.valid[:, None])
    assert (tokens.text_attention[filler] == 0).all()


@pytest.fixture(scope="module")
def with_sinks():
    """InternVL with a decoder of GPT-OSS, whose heads have unlike sinks, and a prompt."""
    case = tiny.case("internvl", "eager")
    given = case.model.config
    text = GptOssConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=given.text_config.vocab_size,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.15,
    )
    config = InternVLConfig(
        vision_config=given.vision_config,
        text_config=text,
        image_token_id=given.image_token_id,
        image_seq_length=given.image_seq_length,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration._from_config(config, attn_implementation="eager")
    for layer in model.model.language_model.layers:
        layer.self_attn.sinks.data = torch.tensor([6.0, -6.0, 0.0, 3.0])
    return model.eval(), case.rows[0]


def test_sinks_of_heads_take_their_share(with_sinks, seen):
    model, inputs = with_sinks
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[2][0]  # [H, S, S]
        with apply(model, Plan((Cut(3, 0.5, "attention"),))):
            model(**inputs)
        tape = Tape.record(model, inputs)
    visual = inputs["input_ids"][0] == model.config.image_token_id
    tokens = seen[0][0]
    got = (tokens.logits - tokens.lse[..., None]).exp()[0]
    torch.testing.assert_close(got, weights[:, -1][:, visual], atol=1e-6, rtol=1e-4)
    text = ~visual & (visual.cumsum(0) > 0)
    to_visual, _ = tape.attention_mass(2)
    wanted = weights[:, text][:, :, visual].sum(-1).mean()
    torch.testing.assert_close(to_visual[0], wanted, atol=1e-6, rtol=1e-4)


def test_a_window_that_hides_the_image_is_warned_of_once(caplog):
    warn_out_of_sight.cache_clear()

    def warned(cut, name="gemma3"):
        caplog.clear()
        case = tiny.case(name, "sdpa")
        with torch.no_grad(), apply(case.model, Plan((cut,))):
            case.model(**case.extended(case.rows[0], torch.full((1, 40), 50)))
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING, "tpcal.plans.executor.attention_reader"):
        local, full = Cut(2, 0.5, "attention"), Cut(3, 0.5, "attention")
        assert warned(full) == warned(Cut(2, 0.5, "grid")) == warned(local, "gemma3_wide") == []
        (message,) = warned(local)
        assert "attention of layer 1, whose window is 24 positions" in message
        assert warned(local) == []


def test_text_attention_after_a_first_cut_is_that_on_the_tokens_left(seen):
    model = tiny_llava()
    cuts = (Cut(1, 0.5, "random"), Cut(3, 0.25, "sparsevlm"))
    with apply(model, Plan(cuts)) as handle:
        model(**batch(MIXED))
    tokens = seen[0][0]
    assert tokens.index[0][tokens.valid[0]].tolist() == list(handle.last.cuts[0].kept[0])
    assert tokens.text_attention.shape == (*tokens.text_valid.shape, tokens.valid.shape[1])
    assert (tokens.text_attention[tokens.text_valid].sum(-1) < 1).all()
    assert (tokens.text_attention[1][tokens.text_valid[1]].sum(-1) > 0).all()


def test_keys_states_text_and_grids_belong_to_the_tokens(seen):
    inputs = batch(MIXED)
    model = tiny_llava()
    layers = find(model).layers(model)
    states = {}
    hook = layers[2].register_forward_pre_hook(lambda m, args: states.setdefault("x", args[0]))
    out = model(**inputs, use_cache=True)
    hook.remove()
    keys = out.past_key_values.layers[1].keys.transpose(1, 2).flatten(2)  # [B, S, E]
    with apply(model, Plan((Cut(2, 0.5, "dart"),))):
        model(**inputs)
    tokens = seen[0][0]
    for row, ids in enumerate(inputs["input_ids"]):
        visual, valid = ids == IMAGE, tokens.valid[row]
        n = int(visual.sum())
        assert int(valid.sum()) == n
        torch.testing.assert_close(tokens.hidden[row][valid], states["x"][row][visual])
        torch.testing.assert_close(tokens.keys[row][valid], keys[row][visual])
        assert tokens.index[row][valid].tolist() == list(range(n))
        assert tokens.image[row][valid].tolist() == [i // N_IMAGE for i in range(n)]
        places = [i % N_IMAGE for i in range(n)]
        assert tokens.grid_row[row][valid].tolist() == [p // SIDE for p in places]
        assert tokens.grid_col[row][valid].tolist() == [p % SIDE for p in places]
        assert tokens.grid_shape[row][valid].tolist() == [[SIDE, SIDE]] * n
        if n == 0:
            assert not tokens.text_valid[row].any()
            continue
        text = ~visual & (visual.cumsum(0) > 0)
        torch.testing.assert_close(
            tokens.text_hidden[row][tokens.text_valid[row]], states["x"][row][text]
        )
    filler = ~tokens.valid
    assert (tokens.index[filler] == -1).all()
    assert (tokens.image[filler] == -1).all()
