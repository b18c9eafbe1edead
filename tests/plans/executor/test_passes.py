"""Passes on LLaVA beside the laws: lengths, counts, shapes, odd heads."""

from __future__ import annotations

import pytest
import torch
from models import batch, prompt, rows_alone, tiny_llava

from tpcal.plans.executor.handle import apply
from tpcal.plans.laws import LAWS, Case, run
from tpcal.plans.plan_records import Condition, Cut, Plan, entering, n_keep

pytestmark = pytest.mark.versions

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


def test_laws_hold_for_a_conditional_plan(model):
    laws = [LAW[name] for name in ("reference", "rows alone", "same choice")]
    for verdict in run(case(model), laws, CONDITIONAL):
        assert verdict.holds, f"{verdict.law.name}: {verdict.detail}"


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
