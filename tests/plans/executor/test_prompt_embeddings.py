"""Prompts for engines that take embeddings: the answer is that of the model with the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tpcal
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.executor.prompt_embeddings import PrunedPrompt, pruned_prompt
from tpcal.plans.families import find
from tpcal.plans.plan_records import Cut, Plan


def _plan(selector: str, scope: str = "image", merge: str | None = None) -> Plan:
    return Plan(cuts=(Cut(0, 0.4, selector),), scope=scope, merge=merge)


def _of_engine(model: PreTrainedModel, prompt: PrunedPrompt) -> Tensor:
    """[V] logits after a prompt, as an engine computes them that has the decoder alone."""
    family = find(model)
    states = family.decoder(model)(
        inputs_embeds=prompt.inputs_embeds,
        position_ids=prompt.position_ids,
        attention_mask=prompt.attention_mask,
        use_cache=False,
    ).last_hidden_state
    return family.logits(model, states[0, -1])


def test_the_model_keeps_the_position_offset_of_its_last_prompt() -> None:
    case = tiny.case("qwen2_5_vl", "sdpa")
    base = find(case.model).base(case.model)
    case.model(**case.rows[0])
    before = base.rope_deltas.clone()
    pruned_prompt(case.model, _plan("grid"), case.rows[1])
    assert torch.equal(base.rope_deltas, before)
    case.model(**case.rows[1])
    assert not torch.equal(base.rope_deltas, before)  # the prompts differ


@pytest.mark.parametrize(
    ("name", "selector", "scope"),
    [
        ("llava", "diversity", "image"),
        ("llava", "pooling", "image"),
        ("llava", "visionzip", "prompt"),
        ("qwen2_5_vl", "dart", "image"),
        ("qwen2_5_vl", "cdpruner", "prompt"),
    ],
)
def test_the_decoder_answers_as_the_model_with_the_plan(
    name: str, selector: str, scope: str
) -> None:
    case, plan = tiny.case(name, "sdpa"), _plan(selector, scope)
    for row in case.rows[:3]:  # one image, two, and none
        prompt = pruned_prompt(case.model, plan, row)
        with tpcal.apply(case.model, plan) as handle:
            expected = case.model(**find(case.model).numbered(row)).logits[0, -1]
            report = handle.last
        assert report is not None
        torch.testing.assert_close(_of_engine(case.model, prompt), expected, rtol=1e-4, atol=1e-5)
        assert prompt.inputs_embeds.shape[1] == len(prompt.kept)
        visual = find(case.model).visual_mask(case.model, row["input_ids"], None)[0]
        ranks = (visual.cumsum(0) - 1)[prompt.kept][visual[prompt.kept]]
        assert tuple(ranks.tolist()) == (report.cuts[0].kept[0] if visual.any() else ())


@pytest.mark.parametrize("scope", ["image", "prompt"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_embeddings_of_merged_tokens_are_means_and_the_answer_is_that_of_the_plan(
    name: str, scope: str
) -> None:
    case, plan = tiny.case(name, "sdpa"), _plan("diversity", scope, "mean")
    for row in case.rows[:2]:
        prompt = pruned_prompt(case.model, plan, row)
        plain = pruned_prompt(case.model, _plan("diversity", scope), row)
        assert torch.equal(prompt.kept, plain.kept)
        visual = find(case.model).visual_mask(case.model, row["input_ids"], None)[0][prompt.kept]
        changed = (prompt.inputs_embeds != plain.inputs_embeds).any(-1)[0]
        assert changed[visual].any()
        assert not changed[~visual].any()
        with tpcal.apply(case.model, plan):
            expected = case.model(**find(case.model).numbered(row)).logits[0, -1]
        torch.testing.assert_close(_of_engine(case.model, prompt), expected, rtol=1e-4, atol=1e-5)


def test_decoders_that_read_more_than_embeddings_are_refused() -> None:
    for name, why in {
        "qwen3_vl": "it reads visual_pos_masks, deepstack_visual_embeds",
        "gemma3": "must have no sliding window",
    }.items():
        case = tiny.case(name, "sdpa")
        before = _n_hooks(case.model)
        with pytest.raises(FitError, match=why):
            pruned_prompt(case.model, _plan("diversity"), case.rows[0])
        assert _n_hooks(case.model) == before


def test_what_no_engine_could_run_is_refused() -> None:
    case = tiny.case("llava", "sdpa")
    row: Mapping[str, Any] = case.rows[0]
    with pytest.raises(FitError, match=r"cuts\[0\]\.layer must be 0"):
        pruned_prompt(case.model, Plan(cuts=(Cut(2, 0.5, "grid"),)), row)
    with pytest.raises(FitError, match="merge must be absent or mean.*got proportional"):
        pruned_prompt(case.model, _plan("grid", merge="proportional"), row)
    with pytest.raises(UsageError, match="one by one and without padding; got 2"):
        pruned_prompt(case.model, _plan("grid"), case.batch(case.rows[:2]))
    with pytest.raises(UsageError, match="must hold input_ids"):
        pruned_prompt(case.model, _plan("grid"), {})
    with (
        tpcal.apply(case.model, _plan("grid")),
        pytest.raises(UsageError, match="call remove"),
    ):
        pruned_prompt(case.model, _plan("grid"), row)


def _n_hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())
