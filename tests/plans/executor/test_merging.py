"""Tokens that leave merged into those that are most alike, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpcal.plans.executor.merging import merged
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors.base import Tokens

FILLER = torch.tensor([5.0, 5.0])


def tokens(hidden: Tensor, valid: Tensor | None = None, counts: Counts | None = None) -> Tokens:
    """Tokens [B, N, D] of which merging reads the states, what is filler, and the counts."""
    if valid is None:
        valid = torch.ones(hidden.shape[:2], dtype=torch.bool)
    place = torch.zeros_like(valid, dtype=torch.int64)
    return Tokens(
        layer=2,
        hidden=hidden,
        valid=valid,
        index=torch.arange(valid.shape[1]).expand_as(valid),
        image=place,
        n_original=valid.sum(1),
        grid_row=place,
        grid_col=place,
        grid_shape=place[..., None].expand(-1, -1, 2),
        counts=counts,
    )


def example(*kept: int) -> Tensor:
    """[1, 4] bool, True at these tokens."""
    return torch.isin(torch.arange(4), torch.tensor(kept))[None]


def test_a_kept_token_becomes_the_mean_of_all_that_it_stands_for():
    states = torch.tensor([[[1.0, 0], [0, 1], [2, 0.1], [0.1, 3]]])
    sizes = torch.tensor([[1.0, 2, 3, 4]])
    found, numbers = merged(tokens(states), example(0, 1), sizes)
    first = (1 * states[0, 0] + 3 * states[0, 2]) / (1 + 3)
    second = (2 * states[0, 1] + 4 * states[0, 3]) / (2 + 4)
    torch.testing.assert_close(found[0, :2], torch.stack([first, second]))
    assert numbers[0, :2].tolist() == [4, 6]


def test_alike_are_states_of_one_direction_whatever_their_length():
    states = torch.tensor([[[1.0, 0.2], [100, 120], [1, 1.1], [40, 1]]])
    found, numbers = merged(tokens(states), example(0, 1), torch.ones(1, 4))
    torch.testing.assert_close(found[0, 0], (states[0, 0] + states[0, 3]) / 2)
    torch.testing.assert_close(found[0, 1], (states[0, 1] + states[0, 2]) / 2)
    assert numbers[0, :2].tolist() == [2, 2]


@pytest.mark.parametrize("kept", [(1, 3), (0, 2)])
def test_ties_go_to_the_lowest_index(kept):
    states = torch.tensor([[[4.0, 2], [2, 1], [6, 3], [8, 4]]])
    found, numbers = merged(tokens(states), example(*kept), torch.ones(1, 4))
    assert numbers[0, list(kept)].tolist() == [3, 1]
    assert torch.equal(found[0, kept[1]], states[0, kept[1]])


def test_a_token_of_length_0_is_as_far_from_all_and_goes_to_the_lowest_index():
    states = torch.tensor([[[0.0, 1], [1, 0], [0, 0], [1, 0.1]]])
    found, numbers = merged(tokens(states), example(0, 1), torch.ones(1, 4))
    assert numbers[0, :2].tolist() == [2, 2]
    assert found[0, 0].tolist() == [0, 0.5]


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_filler_is_merged_into_no_token(side):
    states, valid = torch.tensor([[1.0, 0], [0, 1], [2, 0.1]]), torch.tensor([False] + 3 * [True])
    order = {"left": [3, 0, 1, 2], "right": [0, 1, 2, 3], "between": [0, 3, 1, 2]}[side]
    row = torch.cat([states, FILLER[None]])[order][None]
    valid = (torch.tensor(order) < 3)[None]
    stays = torch.isin(torch.tensor(order), torch.tensor([0, 1]))[None]
    found, numbers = merged(tokens(row, valid), stays, valid.float())
    assert numbers[stays].tolist() == [2, 1]
    torch.testing.assert_close(found[stays], torch.tensor([[1.5, 0.05], [0, 1]]))


def test_a_row_that_keeps_all_is_unchanged_beside_one_that_does_not():
    states = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([[1.0, 2, 3, 4], [1, 1, 1, 1]])
    stays = torch.cat([example(0, 1, 2, 3), example(2)])
    found, numbers = merged(tokens(states), stays, sizes)
    assert torch.equal(found[0], states[0])
    assert numbers[0].tolist() == sizes[0].tolist()
    assert numbers[1, 2] == 4
    torch.testing.assert_close(found[1, 2], states[1].mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_several_lengths_get_in_a_batch_what_they_get_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    lengths, keeps, width = (37, 5, 64, 1), (9, 5, 20, 1), 48
    hidden = torch.randn(4, 64, width, generator=generator).to(dtype)
    valid = torch.arange(64) < torch.tensor(lengths)[:, None]
    stays, sizes = torch.zeros_like(valid), torch.randint(1, 9, (4, 64), generator=generator) * 1.0
    for row, (n, k) in enumerate(zip(lengths, keeps, strict=True)):
        stays[row, torch.randperm(n, generator=generator)[:k]] = True
    sizes = sizes * valid
    together, numbers = merged(tokens(hidden, valid), stays, sizes)
    counts = Counts(lengths, keeps, (1,) * 4, (0,) * 4)
    told = merged(tokens(hidden, valid, counts), stays, sizes)
    for row, n in enumerate(lengths):
        own = stays[row, :n]
        states, number = merged(tokens(hidden[row, None, :n]), own[None], sizes[row, None, :n])
        for found in (together, told[0]):
            assert torch.equal(found[row, :n][own], states[0, own])
        for found in (numbers, told[1]):
            assert torch.equal(found[row, :n][own], number[0, own])
        assert number[0, own].sum() == sizes[row].sum()
    assert together.dtype == dtype


def test_cuts_one_after_the_other_weigh_tokens_by_what_they_stand_for():
    states = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(1))
    mean, sizes = states[0].mean(0), torch.ones(1, 12)
    for n_left in (5, 2, 1):
        stays = (torch.arange(states.shape[1]) < n_left)[None]
        states, sizes = (found[:, :n_left] for found in merged(tokens(states), stays, sizes))
        assert sizes.sum() == 12
    torch.testing.assert_close(states[0, 0], mean)
