"""What of a plan runs in a serving engine, and what it costs there."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from tpcal.plans import engines
from tpcal.plans.budget_projection import Limits
from tpcal.plans.engines import EMBEDDINGS, VLLM
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Condition, Cut, Plan


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    assert engines.named("vllm") is VLLM
    with pytest.raises(UsageError, match=r"must be one of vllm, embeddings; got other\."):
        engines.named("other")


def test_selectors_that_read_the_grid_need_square_images() -> None:
    grid = Cut(2, 0.5, "grid")
    assert VLLM.runs(grid)
    assert VLLM.runs(grid, "LlavaForConditionalGeneration")
    assert not VLLM.runs(grid, "Qwen2_5_VLForConditionalGeneration")
    assert not VLLM.runs(grid, "AnyOtherModel")
    assert VLLM.runs(Cut(2, 0.5, "diversity"), "AnyOtherModel")
    spread, plain = (
        Cut(2, 0.5, "balanced", {"attention_share": 0, "spatial_share": share})
        for share in (0.5, 0)
    )
    assert VLLM.runs(spread, "LlavaForConditionalGeneration")
    assert not VLLM.runs(spread, "AnyOtherModel")
    assert VLLM.runs(plain, "AnyOtherModel")
    assert not VLLM.runs(Cut(2, 0.0, condition=Condition(0.1)))


def test_a_step_divides_the_decoder_where_one_does() -> None:
    steps = {n: VLLM.layer_step(n) for n in (6, 8, 24, 26, 28, 32, 36, 40, 48, 62, 64, 80)}
    assert steps == {
        **{6: 1, 8: 1, 24: 3, 26: 4, 28: 4, 32: 4, 36: 6, 40: 5},
        **{48: 6, 62: 8, 64: 8, 80: 10},
    }


@pytest.mark.parametrize("n_layers", [23, 26, 28, 32, 36, 62])
def test_cuts_at_steps_need_few_block_tables(n_layers: int) -> None:
    step = VLLM.layer_step(n_layers)
    layers = range(0, Limits(9, n_layers, layer_step=step).last_layer + 1, step)
    for n_cuts in range(1, 5):
        for places in combinations(layers, n_cuts):
            plan = Plan(tuple(Cut(layer, 1 / (2 + i), "grid") for i, layer in enumerate(places)))
            lengths = engines.stage_lengths(plan, n_layers)
            assert engines.n_block_tables(lengths) <= VLLM.most_block_tables


def test_an_engine_that_takes_embeddings_runs_cuts_before_layer_0_only() -> None:
    assert EMBEDDINGS.runs(Cut(0, 0.5, "grid"), "AnyModel")
    assert EMBEDDINGS.layer_step(32) == Limits(9, 32, layer_step=32).layer_step == 32
    assert Limits(9, 32, layer_step=32).last_layer == 0
    deep = Plan((Cut(0, 0.5, "attention"), Cut(8, 0.0, condition=Condition(0.1))))
    first, second, third = EMBEDDINGS.plan_problems(deep, "AnyModel")
    assert "cuts[0].selector: attention needs attention scores, which no layer" in first
    assert second.startswith("cuts[1].layer must be 0, because an engine that takes prompt")
    assert third.startswith("cuts[1].condition: Nothing can be measured before layer 0.")


@pytest.mark.parametrize(
    ("merge", "in_vllm", "with_embeddings"),
    [
        (None, None, None),
        ("mean", None, None),
        (
            "proportional",
            "merge must be absent or mean in vLLM; got proportional.",
            "merge must be absent or mean in an engine",
        ),
    ],
)
def test_engines_name_the_merging_that_they_cannot_do_and_the_way_out(
    merge: str | None, in_vllm: str | None, with_embeddings: str | None
) -> None:
    plan = Plan((Cut(0, 0.5, "grid"),), scope="image", merge=merge)
    llava = "LlavaForConditionalGeneration"
    for engine, message in ((VLLM, in_vllm), (EMBEDDINGS, with_embeddings)):
        problems = engine.plan_problems(plan, llava)
        assert problems == engine.merge_problems(merge)
        if message is None:
            assert problems == []
        else:
            assert problems[0].startswith(message)
            assert problems[0].endswith("Calibrate with --merge mean.")


def test_memory_of_groups_that_are_not_full_is_counted() -> None:
    # Stages of 3 and 4 layers get groups of 4 layers: 4 * (10 + 2) + 4 * (5 + 2) of 7 * 12.
    plan = Plan((Cut(3, 0.5, "grid"),))
    assert math.isclose(engines.kv_share(plan, 7, 10, 2), (4 * 12 + 4 * 7) / (7 * 12))
