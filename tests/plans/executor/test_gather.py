"""Arguments gathered to the tokens that are left, by hand."""

from __future__ import annotations

import pytest
import torch

from tpcal.plans.executor import gather
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.survivors import Survivors

pytestmark = pytest.mark.versions

NOTHING = Held.recent(1, 0, 0, torch.device("cpu"))
PLACES = torch.tensor([[0, 1, 3, 5]])
LEFT = Survivors(PLACES, None, (2,))
HELD = NOTHING.joined(PLACES, None, 6)
"""A prompt of six tokens whose places 2 and 4 left."""


def test_states_go_to_their_columns_and_filler_keeps_its_own():
    hidden = torch.arange(8.0).view(2, 4, 1)
    visual = torch.tensor([[False, True, True, False], [False, False, True, False]])
    states = 10 + torch.arange(6.0).view(2, 3, 1)
    stays = torch.tensor([[True, False, True], [False, True, False]])
    made = gather.with_states(hidden, visual, states, stays, 2)[..., 0]
    assert made.tolist() == [[0, 10, 12, 3], [4, 5, 14, 7]]


def test_survivors_keep_the_rotation_of_their_places_and_other_values_stay():
    table = torch.arange(12.0).view(1, 6, 2)
    arguments = {"position_embeddings": (table, -table), "scale": torch.ones(6), "flag": True}
    made = gather.Gatherer().arguments(arguments, LEFT, HELD, 6)
    assert torch.equal(made["position_embeddings"][0], table[:, [0, 1, 3, 5]])
    assert torch.equal(made["position_embeddings"][1], -table[:, [0, 1, 3, 5]])
    assert made["scale"] is arguments["scale"]
    assert made["flag"] is True


def test_a_tensor_is_gathered_once_for_all_layers():
    gatherer, table = gather.Gatherer(), torch.ones(1, 6, 2)
    one, two = (gatherer.values((table,), LEFT, 6) for _ in range(2))
    assert one[0] is two[0]


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_a_mask_is_read_at_places_of_queries_and_positions_of_keys(kind):
    numbers = torch.arange(36.0).view(1, 1, 6, 6)
    mask = numbers % 5 < 3 if kind == "bool" else numbers
    made = gather.layer_mask(mask, LEFT, HELD, 6)
    assert torch.equal(made, mask[:, :, [0, 1, 3, 5]][..., [0, 1, 3, 5]])


def test_the_mask_of_the_next_token_has_a_column_for_each_one_held():
    mask = torch.arange(7.0).view(1, 1, 1, 7)
    made = gather.layer_mask(mask, Survivors(None, None, (0,)), HELD.extended(1), 1)
    assert made.tolist() == [[[[0, 1, 3, 5, 6]]]]


def test_no_mask_is_made_where_columns_are_in_causal_order():
    assert gather.layer_mask(None, LEFT, HELD, 6) is None
    assert gather.layer_mask(None, Survivors(None, None, (0,)), HELD.extended(1), 1) is None


def test_a_second_prompt_sees_what_is_held_and_itself_in_causal_order():
    made = gather.layer_mask(None, Survivors(None, None, (0,)), HELD.extended(2), 2)
    assert made.tolist() == [[[[True] * 5 + [False], [True] * 6]]]


def test_filler_is_hidden_from_tokens_and_sees_only_itself():
    places, valid = torch.tensor([[1, 0, 2]]), torch.tensor([[False, True, True]])
    held = NOTHING.joined(places, valid, 3)
    made = gather.layer_mask(None, Survivors(places, valid, (0,)), held, 3)
    assert made[0, 0].tolist() == [[True, True, False], [False, True, False], [False, True, True]]


def test_states_return_to_their_places_and_filler_overwrites_none():
    places, valid = torch.tensor([[1, 0, 2]]), torch.tensor([[False, True, True]])
    states = torch.tensor([9.0, 1.0, 2.0]).view(1, 3, 1)
    full = gather.scattered(states, Survivors(places, valid, (0,)), 4)
    assert full[0, :, 0].tolist() == [1, 0, 2, 0]
