"""Masks of layers whose keys count several times, by hand; test_gather.py has those of others."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tpcal.plans.executor.kernels import FlashLayer
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.masks import block_mask, flash_mask, layer_mask
from tpcal.plans.executor.survivors import Survivors

PLACES = torch.tensor([[0, 1, 3, 5]])
LEFT = Survivors(PLACES, None, (2,))
EVERY = Survivors(None, None, (0,))
LOG_SIZES = torch.tensor([[0.0, 2, 0.5, 0]])
NOTHING = Held.recent(1, 0, 0, torch.device("cpu"))
HELD = NOTHING.joined(PLACES, None, 6, LOG_SIZES)
"""A prompt of six tokens of which four are left; the second and the third count several times."""
LEAST = torch.finfo(torch.float32).min


def added(sees, log_sizes):
    """[m, K] the sizes where a query sees a key, and the least number elsewhere."""
    return torch.where(sees, log_sizes, LEAST)


def test_a_mask_of_bools_becomes_one_that_adds_to_logits():
    mask = torch.arange(36).view(1, 1, 6, 6) % 5 < 3
    made = layer_mask(mask, LEFT, HELD, 6)
    assert made.shape == (1, 1, 4, 4)
    assert torch.equal(made[0, 0], added(mask[0, 0][PLACES[0]][:, PLACES[0]], LOG_SIZES))


def test_an_additive_mask_keeps_what_it_adds():
    mask = torch.where(torch.ones(6, 6).tril() > 0, torch.arange(6.0), LEAST)
    made = layer_mask(mask[None, None], LEFT, HELD, 6)[0, 0]
    gathered = mask[PLACES[0]][:, PLACES[0]]
    assert torch.equal(made, gathered + LOG_SIZES)
    assert made.isfinite().all()
    assert (made.triu(1)[gathered == LEAST] == LEAST).all()  # what is hidden stays hidden


def test_a_prompt_without_a_mask_gets_one_in_causal_order():
    made = layer_mask(None, LEFT, HELD, 6)
    assert torch.equal(made[0, 0], added(torch.ones(4, 4).tril() > 0, LOG_SIZES))


def test_one_query_without_a_mask_sees_all_keys_as_often_as_they_count():
    made = layer_mask(None, EVERY, HELD.extended(1), 1)
    assert made.tolist() == [[[[0, 2, 0.5, 0, 0]]]]


def test_a_second_prompt_counts_the_keys_of_the_first():
    made = layer_mask(None, EVERY, HELD.extended(2), 2)
    sees = torch.tensor([[True] * 5 + [False], [True] * 6])
    sizes = torch.tensor([0.0, 2, 0.5, 0, 0, 0])
    assert torch.equal(made[0, 0], added(sees, sizes))


@pytest.mark.parametrize("kind", ["bool", "additive", "none"])
def test_keys_that_count_several_times_are_hidden_where_they_are_filler(kind):
    places, valid = torch.tensor([[1, 0, 2]]), torch.tensor([[False, True, True]])
    held = NOTHING.joined(places, valid, 3, torch.tensor([[9.0, 1, 0]]))
    causal = torch.ones(1, 1, 3, 3).tril() > 0
    additive = torch.where(causal, 0.0, LEAST)
    mask = {"bool": causal, "additive": additive, "none": None}[kind]
    made = layer_mask(mask, Survivors(places, valid, (0,)), held, 3)[0, 0]
    assert (made[1:, 0] == LEAST).all()
    assert made[0, 0] > LEAST  # filler sees itself, so that its softmax is over something
    assert made[1:, 1:].tolist() == [[1, LEAST], [1, 0]]


def test_keys_behind_a_window_are_hidden_whatever_they_count():
    mask = torch.ones(1, 1, 1, 3, dtype=torch.bool)  # of the last three positions, 4 to 6
    made = layer_mask(mask, EVERY, HELD.extended(1), 1)
    assert made.tolist() == [[[[LEAST, LEAST, LEAST, 0, 0]]]]


@pytest.mark.parametrize("mask", [None, torch.ones(1, 6, dtype=torch.bool)])
def test_a_flash_layer_counts_in_causal_order(mask):
    made = flash_mask(mask, LEFT, HELD, 6, FlashLayer(window=None))
    assert torch.equal(made[0, 0], added(torch.ones(4, 4).tril() > 0, LOG_SIZES))
    step = flash_mask(None, EVERY, HELD.extended(1), 1, FlashLayer(window=None))
    assert step.tolist() == [[[[0, 2, 0.5, 0, 0]]]]


def test_a_flash_layer_counts_what_its_window_shows():
    made = flash_mask(None, LEFT, HELD, 6, FlashLayer(window=3))
    # Positions 0, 1, 3 and 5; each sees the two before it and itself.
    sees = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(made[0, 0], added(torch.tensor(sees) > 0, LOG_SIZES))


def test_a_flash_layer_hides_padding_whatever_it_counts():
    mask = torch.tensor([[False, False, True, True, True, True]])
    made = flash_mask(mask, LEFT, HELD, 6, FlashLayer(window=None))
    sees = torch.ones(4, 4).tril() * torch.tensor([0.0, 0, 1, 1])
    itself = torch.eye(4) > 0  # padding sees itself, so that its softmax is over something
    assert torch.equal(made[0, 0], added((sees > 0) | itself, LOG_SIZES))


def test_a_flash_layer_that_is_not_causal_counts_later_keys_too():
    made = flash_mask(None, LEFT, HELD, 6, FlashLayer(window=None, causal=False))
    assert torch.equal(made[0, 0], LOG_SIZES.expand(4, -1))


def test_flex_attention_adds_what_keys_count():
    def causal(row, head, query, key):
        return key <= query

    mask = create_block_mask(causal, 1, None, 6, 6, device="cpu")
    made = block_mask(mask, LEFT, HELD, 6)
    assert torch.equal(made[0, 0], added(torch.ones(4, 4).tril() > 0, LOG_SIZES))
    assert isinstance(block_mask(mask, LEFT, NOTHING.joined(PLACES, None, 6), 6), BlockMask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("given", ["bool", "none"])
def test_a_mask_has_the_type_of_the_sizes(dtype, given):
    held = NOTHING.joined(PLACES.clone(), None, 6, LOG_SIZES.to(dtype))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril() if given == "bool" else None
    made = layer_mask(mask, LEFT, held, 6)
    assert made.dtype == dtype
    assert made.isfinite().all()
    assert made[0, 0, 0, 1] == torch.finfo(dtype).min
    assert made[0, 0, 3, 1] == 2
