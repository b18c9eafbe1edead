"""Cost arithmetic against published figures, hand computation and torch's own FLOP counter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tpcal.plans.cost import (
    EVERY_PLAN,
    DecoderShape,
    kv_bytes,
    layer_average_keep,
    layers_ms,
    plan_cost,
    prefill_flops,
)
from tpcal.plans.plan_records import Condition, Cut, Plan

LLAVA_7B = DecoderShape(
    n_layers=32,
    hidden=4096,
    ffn=11008,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    vocab=32064,
    dtype_bytes=2,
)


def _published(*cuts: tuple[int, float], n_layers: int = 32) -> Plan:
    return Plan(cuts=tuple(Cut(la, k, "attention" if k else None) for la, k in cuts))


@pytest.mark.parametrize(
    ("cuts", "tokens"),
    [
        ([(2, 0.5)], 306.0),  # FastV K=2 R=50 %
        ([(8, 0.5), (16, 0.25), (24, 0.125)], 270.0),  # PyramidDrop
        ([(16, 0.0)], 288.0),  # VTW K=16
        ([(3, 0.5), (6, 0.25), (14, 48 / 576), (22, 0.0)], 129.0),  # BTP, released
        ([(2, 132 / 576)], 159.75),  # DART "128"
    ],
)
def test_layer_averages_of_published_schedules_come_out(
    cuts: list[tuple[int, float]], tokens: float
) -> None:
    schedule = _published(*cuts).schedule(576, 32)
    assert layer_average_keep(schedule, 576) * 576 == pytest.approx(tokens)


def test_btp_tflops_of_its_table_come_out_on_visual_tokens_alone() -> None:
    # BTP counts multiply-adds of visual tokens only and no output head: 3.82 T unpruned, 0.85 T pruned.
    head = 2.0 * LLAVA_7B.hidden * LLAVA_7B.vocab
    released = _published((3, 0.5), (6, 0.25), (14, 48 / 576), (22, 0.0))
    full = (prefill_flops(LLAVA_7B, [576] * 32) - head) / 2
    pruned = (prefill_flops(LLAVA_7B, released.schedule(576, 32)) - head) / 2
    assert full == pytest.approx(3.82e12, rel=0.002)
    assert pruned == pytest.approx(0.847e12, rel=0.002)


def test_kv_bytes_by_hand() -> None:
    shape = DecoderShape(2, 8, 16, 4, 2, 3, 10, 2)
    # 2 (K and V) * 2 heads * 3 wide * 2 bytes * (5 + 7 tokens)
    assert kv_bytes(shape, [5, 7]) == 2 * 2 * 3 * 2 * 12


def test_prefill_flops_want_one_count_per_layer() -> None:
    with pytest.raises(ValueError, match=r"one entry per layer \(32\); got 2"):
        prefill_flops(LLAVA_7B, [1, 2])


def rotary_flops(decoder: Any, n_tokens: int) -> int:
    """FLOPs of the rotary tables, which costs leave out; before transformers 5.20 they are counted.

    Since then they are no product of matrices, which are all that torch counts.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        decoder.rotary_emb(torch.zeros(1), torch.arange(n_tokens)[None])
    return counter.get_total_flops()


def test_prefill_flops_agree_with_torchs_counter() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=50,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    shape = DecoderShape(3, 32, 48, 4, 2, 8, 50, 4)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.arange(20)[None], logits_to_keep=1, use_cache=False)
    measured = counter.get_total_flops() - rotary_flops(model.model, 20)
    assert measured == prefill_flops(shape, [20] * 3)


def test_cost_of_a_plan_by_hand() -> None:
    shape = DecoderShape(4, 8, 16, 2, 2, 4, 10, 2)
    plan = Plan(cuts=(Cut(1, 0.5, "attention"), Cut(3, 0.0)))
    cost = plan_cost(plan, shape, n_tokens=10, n_text=3, layer_ms=[(0, 0.0), (20, 2.0)])
    assert cost.counts == (5, 0)
    assert cost.layer_average_keep == pytest.approx((10 + 5 + 5 + 0) / 40)
    assert cost.kv_bytes == kv_bytes(shape, [13, 8, 8, 3])
    assert cost.unpruned_kv_bytes == kv_bytes(shape, [13] * 4)
    assert cost.prefill_ms == pytest.approx((13 + 8 + 8 + 3) / 10)
    assert cost.unpruned_prefill_ms == pytest.approx(4 * 1.3)


def test_times_hold_what_the_executor_takes() -> None:
    shape = DecoderShape(4, 8, 16, 2, 2, 4, 10, 2)
    own = {EVERY_PLAN: 0.5, "grid": 0.2, "grid per token": 0.01}
    own |= {"attention": 0.7, "attention per token": 0.0}
    line = [(0, 0.0), (20, 2.0)]

    def ms(*cuts: Cut) -> float | None:
        return plan_cost(Plan(cuts), shape, 10, 3, line, own).prefill_ms

    assert ms() == pytest.approx(4 * 1.3)  # no plan, no executor
    layers = (13 + 8 + 8 + 3) / 10
    assert ms(Cut(1, 0.5, "attention"), Cut(3, 0.0)) == pytest.approx(layers + 0.5 + 0.7)
    layers = (8 + 8 + 5 + 5) / 10
    grid = 0.5 + 0.2 + 0.01 * 5
    assert ms(Cut(0, 0.5, "grid"), Cut(2, 0.2, "grid")) == pytest.approx(layers + grid + 0.22)
    slowest = ms(Cut(0, 0.5, "grid"), Cut(2, 0.2, "dart"))
    assert slowest == pytest.approx(layers + grid + 0.7)


def test_layers_between_and_beyond_measured_counts() -> None:
    table = [(30, 4.0), (10, 1.0), (20, 2.0)]
    assert layers_ms([15], table) == pytest.approx(1.5)
    assert layers_ms([25, 20], table) == pytest.approx(3.0 + 2.0)
    assert layers_ms([40], table) == pytest.approx(6.0)  # the last line goes on
    assert layers_ms([1], table) == pytest.approx(1.0)
    assert layers_ms([7, 9], [(8, 2.5)]) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("cuts", "exact"),
    [
        ((Cut(0, 0.5, "grid"), Cut(3, 0.25, "attention"), Cut(6, 0.0)), True),
        (
            (
                Cut(2, 0.5, "dart", {"text_pivots": 0}),
                Cut(5, 0.25, "balanced", {"attention_share": 1}),
            ),
            True,
        ),
        ((Cut(2, 1.0, "diversity"), Cut(4, 0.5, "attention")), True),  # the first chooses nothing
        (
            (Cut(1, 0.5, "diversity"), Cut(3, 0.25, "sparsevlm")),
            False,
        ),  # half of the pairs suffice
    ],
)
@pytest.mark.parametrize("merge", [None, "proportional"])
def test_flops_of_a_plan_agree_with_torchs_counter(
    cuts: tuple[Cut, ...], exact: bool, merge: str | None
) -> None:
    import torch
    from models import batch, prompt, tiny_llava
    from torch.utils.flop_counter import FlopCounterMode

    from tpcal.plans.executor.handle import apply
    from tpcal.plans.families import decoder_shape

    model, plan = tiny_llava("eager"), Plan(cuts, merge=merge)
    inputs = batch([prompt(0, 9)], mask=False)  # the image, then all of the text but one token
    with torch.inference_mode():
        image = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        with apply(model, plan), FlopCounterMode(display=False) as counter:
            model(**inputs, mm_encoder_outputs={"image": image}, logits_to_keep=1)
    cost = plan_cost(plan, decoder_shape(model), 16, 10)
    measured = counter.get_total_flops() - rotary_flops(model.model.language_model, 16 + 10)
    assert cost.selection_flops is not None
    assert cost.selection_flops > 0
    least = cost.prefill_flops - cost.selection_flops
    assert least < measured <= cost.prefill_flops
    assert not exact or measured == cost.prefill_flops


def test_score_rows_by_hand() -> None:
    shape = DecoderShape(4, 8, 16, 2, 2, 4, 10, 2)
    row = 2 * (2 * 4) * (10 + 3)  # heads * width, times the 13 keys of layer 0
    one = Plan((Cut(1, 0.5, "attention"),))
    assert plan_cost(one, shape, 10, 3).selection_flops == row
    gated = Cut(1, 0.5, "grid", condition=Condition(0.1))
    assert plan_cost(Plan((gated,)), shape, 10, 3).selection_flops == (1 + 3) * row
    both = Cut(1, 0.0, condition=Condition(0.1, 0.1))
    assert plan_cost(Plan((both,)), shape, 10, 3).selection_flops == (1 + 3 + 10) * row


def test_comparisons_of_merged_tokens_by_hand() -> None:
    shape = DecoderShape(4, 8, 16, 2, 2, 4, 10, 2)
    cuts = (Cut(1, 0.5, "grid"), Cut(2, 0.2, "grid"), Cut(3, 0.0))
    for merge in ("mean", "proportional"):
        # 10 tokens become 5 and then 2; where all leave, none is merged.
        compared = 5 * 5 + 3 * 2
        assert plan_cost(Plan(cuts, merge=merge), shape, 10, 3).selection_flops == 2 * 8 * compared
    assert plan_cost(Plan(cuts), shape, 10, 3).selection_flops == 0
    apart = Plan(cuts[:1], scope="image", merge="mean")
    assert plan_cost(apart, shape, [6, 4], 3).selection_flops == 2 * 8 * (3 * 3 + 2 * 2)
    pooled = Plan((Cut(1, 0.25, "pooling"),))
    same = plan_cost(replace(pooled, merge="mean"), shape, 16, 3)
    assert same.selection_flops == plan_cost(pooled, shape, 16, 3).selection_flops


def test_a_plan_in_the_scope_of_images_costs_the_sum_over_images() -> None:
    shape = DecoderShape(4, 8, 16, 2, 2, 4, 10, 2)
    plan = Plan((Cut(1, 0.5, "grid"), Cut(3, 0.1, "grid")), scope="image")
    cost = plan_cost(plan, shape, [5, 5, 3], 4, layer_ms=[(0, 0.0), (20, 2.0)])
    assert (cost.n_tokens, cost.counts) == (13, (3 + 3 + 2, 3))
    assert cost.kv_bytes == kv_bytes(shape, [17, 12, 12, 7])
    assert cost.unpruned_kv_bytes == kv_bytes(shape, [17] * 4)
    assert cost.layer_average_keep == (13 + 8 + 8 + 3) / (4 * 13)
    assert cost.prefill_ms == pytest.approx((17 + 12 + 12 + 7) / 10)
    assert plan_cost(replace(plan, scope="prompt"), shape, [5, 5, 3], 4).counts == (7, 1)
    pairs = Plan((Cut(2, 0.5, "diversity"),), scope="image")
    one, two, both = (plan_cost(pairs, shape, n, 4).selection_flops for n in (6, 4, [6, 4]))
    assert both == one + two
    assert both < plan_cost(pairs, shape, 10, 4).selection_flops


def test_windows_and_shared_keys_limit_what_a_layer_holds() -> None:
    shape = DecoderShape(3, 8, 16, 4, 2, 3, 10, 2, kv_limits=(None, 7, 0))
    assert kv_bytes(shape, [12, 12, 12]) == 2 * 2 * 3 * 2 * (12 + 7)
    assert kv_bytes(shape, [5, 5, 5]) == 2 * 2 * 3 * 2 * (5 + 5)


def test_a_prompt_without_images_keeps_everything() -> None:
    assert layer_average_keep([0, 0], 0) == 1.0
