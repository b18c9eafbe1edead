"""Plans beside flash and flex attention, also when the kernel changes after a plan was applied."""

from __future__ import annotations

from dataclasses import replace

import flash
import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.kernels import is_flash, problem
from tpcal.plans.plan_records import MEAN, PROPORTIONAL, Cut, Plan

PLAN = Plan((Cut(2, 0.5, "attention"), Cut(5, 0.25, "attention")))
PROMPTS = [prompt(3, 0, 4), prompt(2, 0, 3, 0, 5, seed=1)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch and transformers
@pytest.mark.parametrize("rows", [PROMPTS, PROMPTS[:1]], ids=["ragged", "alone"])
@pytest.mark.parametrize("merge", [None, PROPORTIONAL])
@pytest.mark.parametrize("kernel", [flash.NAME, "flex_attention", "eager"])
def test_the_kernel_may_change_after_the_plan_was_applied(kernel, rows, merge):
    model, inputs = tiny_llava(), batch(rows)
    with (
        apply(model, replace(PLAN, merge=merge)) as handle,
        torch.compiler.set_stance("force_eager"),
    ):
        wanted = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        kept = [cut.kept for cut in handle.last.cuts]
        model.set_attn_implementation({"text_config": kernel})
        got = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert [cut.kept for cut in handle.last.cuts] == kept
    assert got.tolist() == wanted.tolist()


def test_a_kernel_that_cannot_run_a_plan_is_refused_by_the_next_pass():
    model = tiny_llava()
    with apply(model, PLAN):
        model.config.text_config._attn_implementation_internal = "paged|eager"
        with pytest.raises(UsageError, match="must not be paged"):
            model(**batch(PROMPTS))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch and transformers
@pytest.mark.parametrize("merge", [MEAN, PROPORTIONAL])
@pytest.mark.parametrize("kernel", [flash.NAME, "flex_attention", "eager"])
def test_merged_tokens_count_alike_with_every_kernel(kernel, merge):
    inputs, logits = batch(PROMPTS), []
    with torch.compiler.set_stance("force_eager"):
        for model in (tiny_llava(kernel), tiny_llava()):
            with apply(model, replace(PLAN, merge=merge)):
                logits.append(model(**inputs).logits[:, -1])
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
    for other in {None, MEAN, PROPORTIONAL} - {merge}:
        with apply(model, replace(PLAN, merge=other)):
            assert (model(**inputs).logits[:, -1] - logits[1]).abs().max() > 0.001


def test_positions_with_gaps_are_not_taken_for_several_sequences():
    # One row without a mask: from positions with gaps, transformers would make packed sequences,
    # and a second turn would see as many keys as it has queries.
    model, inputs = tiny_llava(flash.NAME), batch(PROMPTS[:1])
    plain = tiny_llava()
    turns = []
    for one in (model, plain):
        with apply(one, PLAN):
            out = one(**inputs, use_cache=True)
            again = one(**batch(PROMPTS[:1], mask=False), past_key_values=out.past_key_values)
            turns.append(again.logits)
    torch.testing.assert_close(*turns, atol=1e-4, rtol=1e-4)


def test_names_of_kernels_that_share_a_mask_function_are_known():
    assert is_flash("flash_attention_2")
    assert is_flash(flash.NAME)
    assert not is_flash("sdpa")
    assert problem("flash_attention_3") is None
    assert "paged" in problem("paged|eager")
