"""The laws of the executor on a tiny LLaVA."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, batch, prompt, rows_alone, tiny_llava
from reference import hidden_from, hiding, positions_of

from tpcal.plans.cost import kv_bytes as kv_formula
from tpcal.plans.execute import apply, is_applied, kv_bytes
from tpcal.plans.families import decoder_shape, find
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


def test_cached_decode_equals_a_full_recompute(model):
    inputs = batch(MIXED)
    with apply(model, PLANS["content"]):
        logits, _, tokens = greedy(model, inputs, 5)
        ids = torch.cat([inputs["input_ids"], tokens], dim=1)
        real = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1)
        full = {**inputs, "input_ids": ids, "attention_mask": real}
        again = model(**full, position_ids=positions_of(real), use_cache=False).logits
    assert (logits - again[:, inputs["input_ids"].shape[1] - 1 :]).abs().max() <= CLOSE


@pytest.mark.parametrize("name", ["content", "attention", "before the decoder"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_kv_bytes_of_each_layer_equal_the_formula(model, name, n_rows):
    plan = PLANS[name]
    ids = prompt(3, 0, 2, 0, 4)
    inputs = batch([ids] * n_rows)
    with apply(model, plan):
        out = model(**inputs, use_cache=True)
    shape, n_tokens = decoder_shape(model), 2 * N_IMAGE
    n_text = len(ids) - n_tokens
    held = [n + n_text for n in plan.schedule(n_tokens, N_LAYERS)]
    one = [kv_formula(shape, [n]) for n in held]
    assert kv_bytes(out.past_key_values) == [n_rows * b for b in one]
    assert kv_formula(shape, held) == sum(one)
    allocated = [
        layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()
        for layer in out.past_key_values.layers
    ]
    assert kv_bytes(out.past_key_values) == allocated


@pytest.mark.parametrize("name", ["content", "attention"])
def test_kept_sets_are_ascending_unique_nested_and_the_same_every_time(model, name):
    inputs = batch(MIXED)
    with apply(model, PLANS[name]) as handle:
        model(**inputs)
        first = handle.last
        model(**inputs)
        again = handle.last
    assert [c.kept for c in first.cuts] == [c.kept for c in again.cuts]
    assert first.n_visual == (N_IMAGE, 2 * N_IMAGE, 0, N_IMAGE)
    before = [tuple(range(n)) for n in first.n_visual]
    counts = zip(*map(PLANS[name].counts, first.n_visual), strict=True)
    for cut, count in zip(first.cuts, counts, strict=True):
        assert tuple(map(len, cut.kept)) == count
        for kept, alive in zip(cut.kept, before, strict=True):
            assert list(kept) == sorted(set(kept))
            assert set(kept) <= set(alive)
        before = cut.kept


def test_the_report_names_the_length_of_every_layer(model):
    with apply(model, PLANS["content"]) as handle:
        assert handle.last is None
        model(**batch([prompt(3, 0, 4)]))
    assert handle.last.lengths == (24, 24, 16, 16, 12, 12, 8, 8)


def test_hidden_states_and_logits_keep_their_shapes(model):
    inputs = batch(MIXED)
    whole = inputs["input_ids"].shape
    with apply(model, PLANS["content"]):
        out = model(**inputs, output_hidden_states=True)
        few = model(**inputs, logits_to_keep=3).logits
    assert out.logits.shape[:2] == whole
    assert [h.shape[1] for h in out.hidden_states[:3]] == [whole[1]] * 3
    assert torch.equal(few, out.logits[:, -3:])


def test_a_conditional_cut_is_decided_row_by_row(model):
    inputs = batch(MIXED)
    always = Plan((Cut(4, 0.0, condition=Condition(1.0)),))
    with apply(model, always) as handle:
        model(**inputs)
        mass = handle.last.cuts[0].text_to_visual
        assert handle.last.cuts[0].kept == ((), (), (), ())
    assert mass[2].isnan()  # no image, nothing to measure
    threshold = float(mass[[0, 1, 3]].sort().values[:2].mean())
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(threshold)),))) as handle:
        logits = model(**inputs).logits
        cut = handle.last.cuts[0]
    fired = [row for row in (0, 1, 3) if not cut.kept[row]]
    assert fired == [int(mass.nan_to_num(2).argmin())]
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    wanted = reference(model, inputs, inputs["input_ids"][:, :0], [cut])
    assert (logits - wanted)[text].abs().max() <= CLOSE


def test_both_masses_of_a_condition_must_be_low(model):
    inputs = batch([prompt(2, 0, 3, 0, 5)])  # text between the images: visual tokens attend to it
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(1.0, 1.0)),))) as handle:
        model(**inputs)
        back = float(handle.last.cuts[0].visual_to_text[0])
        assert handle.last.cuts[0].kept == ((),)
    assert back > 0
    with apply(model, Plan((Cut(4, 0.0, condition=Condition(1.0, back / 2)),))) as handle:
        model(**inputs)
        assert handle.last.cuts[0].kept == (tuple(range(2 * N_IMAGE)),)


def test_text_only_prompts_change_no_bit(model):
    inputs = batch([prompt(5), prompt(9, seed=1)])
    before = model(**inputs).logits
    with apply(model, PLANS["attention"]):
        assert torch.equal(model(**inputs).logits, before)


def test_selection_does_not_depend_on_the_kind_of_attention():
    inputs = batch(MIXED)
    kept = []
    for attn in ("sdpa", "eager"):
        model = tiny_llava(attn)
        with apply(model, PLANS["attention"]) as handle:
            model(**inputs)
            kept.append([cut.kept for cut in handle.last.cuts])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_grouped_and_plain_heads_equal_the_reference(n_kv_heads):
    model = tiny_llava(n_kv_heads=n_kv_heads)
    inputs = batch(MIXED)
    with apply(model, PLANS["attention"]) as handle:
        logits, _, tokens = greedy(model, inputs, 4)
    wanted = reference(model, inputs, tokens, handle.last.cuts)
    assert (logits - wanted[:, inputs["input_ids"].shape[1] - 1 :]).abs().max() <= CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_keeps_exact_counts(dtype):
    model = tiny_llava(dtype=dtype)
    inputs = batch(MIXED)
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"], dtype=dtype)  # all alike
    with apply(model, PLANS["attention"]) as handle:
        logits, _, _ = greedy(model, inputs, 3)
    assert logits.isfinite().all()
    assert [len(k) for k in handle.last.cuts[0].kept] == [8, 16, 0, 8]
    assert all(list(k) == sorted(set(k)) for cut in handle.last.cuts for k in cut.kept)


def snapshot(model):
    """Everything a handle might leave behind."""
    modules = list(model.modules())
    return (
        [tuple(map(id, vars(m).get("_forward_pre_hooks", {}).values())) for m in modules],
        [id(getattr(m, "config", None)) for m in modules],
        [sorted(vars(m)) for m in modules],
        [len(m._forward_hooks_always_called) for m in modules],
    )


@pytest.mark.parametrize("name", ["attention", "conditional"])
def test_removing_the_handle_restores_the_model(model, name):
    inputs = batch(MIXED)
    before, state = model(**inputs).logits, snapshot(model)
    handle = apply(model, PLANS[name])
    assert is_applied(model)
    assert not torch.equal(model(**inputs).logits, before)
    handle.remove()
    handle.remove()
    assert not is_applied(model)
    assert snapshot(model) == state
    assert torch.equal(model(**inputs).logits, before)


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_a_failing_forward_leaves_a_usable_handle_and_a_restorable_model(model, at):
    inputs = batch(MIXED)
    before, state = model(**inputs).logits, snapshot(model)
    layer = find(model).layers(model)[at]

    def fail(module, args):
        raise RuntimeError("layer failed")

    with apply(model, PLANS["attention"]):
        wanted = model(**inputs).logits
        for part in (layer.self_attn, layer.self_attn.q_proj, layer.mlp):
            hook = part.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="layer failed"):
                model(**inputs)
            hook.remove()
            model(input_ids=torch.tensor([[9]]))  # another length than the pass that failed
        assert torch.equal(model(**inputs).logits, wanted)
    hook = layer.mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="layer failed"), apply(model, PLANS["attention"]):
        model(**inputs)
    hook.remove()
    assert snapshot(model) == state
    assert torch.equal(model(**inputs).logits, before)


def test_two_models_in_two_threads_do_not_touch_each_other():
    jobs = []
    for seed, name in enumerate(["content", "attention"]):
        model, inputs = tiny_llava(seed=seed), batch(MIXED, seed=seed)
        with apply(model, PLANS[name]):
            jobs.append((model, inputs, PLANS[name], greedy(model, inputs, 3)[0]))

    def work(job):
        model, inputs, plan, wanted = job
        with torch.no_grad(), apply(model, plan):
            return all(torch.equal(greedy(model, inputs, 3)[0], wanted) for _ in range(5))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, jobs))
