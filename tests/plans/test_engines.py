"""What of a plan runs in a serving engine, and what it costs there."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from tpcal.plans import engines
from tpcal.plans.budget_projection import Limits
from tpcal.plans.engines import VLLM
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Condition, Cut, Plan


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    assert engines.named("vllm") is VLLM
    with pytest.raises(UsageError, match=r"must be one of vllm; got other\."):
        engines.named("other")


def test_selectors_that_read_the_grid_need_square_images() -> None:
    grid = Cut(2, 0.5, "grid")
    assert VLLM.runs(grid)
    assert VLLM.runs(grid, "LlavaForConditionalGeneration")
    assert not VLLM.runs(grid, "Qwen2_5_VLForConditionalGeneration")
    assert not VLLM.runs(grid, "AnyOtherModel")
    assert VLLM.runs(Cut(2, 0.5, "diversity"), "AnyOtherModel")
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


def test_memory_of_groups_that_are_not_full_is_counted() -> None:
    # Stages of 3 and 4 layers get groups of 4 layers: 4 * (10 + 2) + 4 * (5 + 2) of 7 * 12.
    plan = Plan((Cut(3, 0.5, "grid"),))
    assert math.isclose(engines.kv_share(plan, 7, 10, 2), (4 * 12 + 4 * 7) / (7 * 12))
