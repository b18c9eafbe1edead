"""What the executor does on LLaVA beside the laws: reports, conditions, shapes, odd heads."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from models import IMAGE, N_IMAGE, N_LAYERS, batch, prompt, rows_alone, tiny_llava
from reference import close

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.families import find
from tpcal.plans.laws import LAWS, Case, run
from tpcal.plans.laws.identity import failing
from tpcal.plans.laws.reference import hidden_tokens, hiding
from tpcal.plans.schema import Condition, Cut, Plan, entering, n_keep
from tpcal.plans.selectors.random import Random

MIXED = [
    prompt(3, 0, 4),
    prompt(2, 0, 3, 0, 5, seed=1),
    prompt(7, seed=2),
    prompt(1, 0, 9, seed=3),
]
CONTENT = Plan((Cut(2, 0.5, "random"), Cut(4, 0.25, "grid"), Cut(6, 0.0)))
ATTENTION = Plan((Cut(2, 0.5, "attention"), Cut(4, 0.25, "attention"), Cut(6, 0.0)))
CONDITIONAL = Plan((Cut(3, 0.5, "grid"), Cut(5, 0.0, condition=Condition(0.3))))
LAW = {law.name: law for law in LAWS}


def case(model):
    """The prompts one by one."""
    return Case("llava", model, tuple(rows_alone(batch(MIXED))))


@pytest.mark.parametrize("law", ["reference", "rows alone", "same choice"])
def test_laws_hold_for_a_conditional_plan(model, law):
    (verdict,) = run(case(model), [LAW[law]], CONDITIONAL)
    assert verdict.holds, verdict.detail


def test_the_report_names_the_length_of_every_layer(model):
    with apply(model, CONTENT) as handle:
        assert handle.last is None
        model(**batch([prompt(3, 0, 4)]))
    assert handle.last.lengths == (24, 24, 16, 16, 12, 12, 8, 8)


def test_counts_are_rounded_up_as_the_plan_says(model):
    cuts = (Cut(2, 0.55, "random"), Cut(5, 0.2, "grid"))
    with apply(model, Plan(cuts, round_to=4)) as handle:
        model(**batch([prompt(3, 0, 4)]))
    assert handle.last.lengths == (24, 24, *[8 + 12] * 3, *[8 + 4] * 3)  # 9 and 3 before rounding
    assert handle.last.lengths == tuple(8 + n for n in handle.plan.schedule(16, 8))
    assert handle.last.counts() == [((2, 12), (5, 4))]
    assert entering(16, handle.last.counts()[0], 8) == handle.plan.schedule(16, 8)


def test_every_row_has_its_own_counts(model):
    inputs = batch(MIXED)
    with apply(model, Plan((Cut(2, 0.5, "grid"), Cut(4, 0.0)))) as handle:
        model(**inputs)
    expected = [((2, n_keep(0.5, n)), (4, 0)) for n in handle.last.n_visual]
    assert handle.last.counts() == expected
    with apply(model, Plan()) as handle:
        model(**inputs)
    assert handle.last.counts() == [()] * len(MIXED)


def test_hidden_states_and_logits_keep_their_shapes(model):
    inputs = batch(MIXED)
    whole = inputs["input_ids"].shape
    with apply(model, CONTENT):
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
    with hiding(model, hidden_tokens(inputs["input_ids"] == IMAGE, [cut], N_LAYERS)):
        wanted = model(**inputs).logits
    assert (logits - wanted)[text].abs().max() <= close(model, inputs)


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


def test_selection_does_not_depend_on_the_kind_of_attention():
    inputs = batch(MIXED)
    kept = []
    for attn in ("sdpa", "eager"):
        model = tiny_llava(attn)
        with apply(model, ATTENTION) as handle:
            model(**inputs)
            kept.append([cut.kept for cut in handle.last.cuts])
    assert kept[0] == kept[1]


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_grouped_and_plain_heads_equal_the_reference(n_kv_heads):
    (verdict,) = run(case(tiny_llava(n_kv_heads=n_kv_heads)), [LAW["reference"]])
    assert verdict.holds, verdict.detail


def test_a_pass_of_another_length_may_follow_one_that_failed(model):
    inputs = batch(MIXED)
    attention = find(model).layers(model)[1].self_attn
    with apply(model, ATTENTION):
        wanted = model(**inputs).logits
        with failing(attention.q_proj), pytest.raises(Exception, match="^$"):
            model(**inputs)  # the probe was asked, but not answered
        model(input_ids=torch.tensor([[9]]))
        assert torch.equal(model(**inputs).logits, wanted)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "save": lambda module: torch.save(module, io.BytesIO()),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_model_with_a_plan_is_not_copied_and_without_it_is_again(how):
    model, inputs = tiny_llava(), batch(MIXED)
    parts = (model, model.model, model.model.language_model, {"held": model})
    with apply(model, CONTENT):
        for part in parts:
            with pytest.raises(UsageError, match=r"cannot be copied or pickled.*Call remove\(\)"):
                COPIES[how](part)
    for part in parts:
        COPIES[how](part)
    copied = copy.deepcopy(model)
    with apply(copied, CONTENT) as handle:
        unpruned = model(**inputs).logits
        assert handle.last is None
        assert not torch.equal(copied(**inputs).logits, unpruned)


def test_weights_are_saved_while_a_plan_is_applied(model, tmp_path):
    with apply(model, CONTENT):
        names = list(model.state_dict())
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
    assert list(again.state_dict()) == names


def _more(choice, valid):
    return valid


def _fewer(choice, valid):
    return choice & (choice.cumsum(1) > 1)


def _filler(choice, valid):
    moved = choice.clone()
    moved[-1] = moved[-1].flip(0)
    return moved


def _numbers(choice, valid):
    return choice.long()


def _narrow(choice, valid):
    return choice[:, :-1]


def _list(choice, valid):
    return choice.tolist()


@pytest.mark.parametrize("fault", [_more, _fewer, _filler, _numbers, _narrow, _list])
def test_a_selector_that_breaks_its_promise_is_one_clear_error(model, fault, monkeypatch):
    select = Random.select

    def broken(self, tokens, n_keep):
        return fault(select(self, tokens, n_keep), tokens.valid)

    inputs = batch(MIXED)
    with apply(model, CONTENT):
        wanted = model(**inputs).logits
        with monkeypatch.context() as patch:
            patch.setattr(Random, "select", broken)
            with pytest.raises(UsageError, match="The selector random must return a bool tensor"):
                model(**inputs)
        assert torch.equal(model(**inputs).logits, wanted)
