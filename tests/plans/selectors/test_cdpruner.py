from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.cdpruner import greedy_map, text_relevance


def everything(n):
    return torch.ones(1, n, dtype=torch.bool)


def test_it_is_the_greedy_choice_of_the_largest_determinant(make_row):
    row = make_row([(5, 6)], dtype=torch.float64)
    relevance = torch.rand(1, 30, generator=torch.Generator().manual_seed(4)).double()
    unit = torch.nn.functional.normalize(row.hidden[0], dim=-1)
    kernel = relevance[0][:, None] * (unit @ unit.T) * relevance[0]
    picks = []
    while len(picks) < 9:
        volume = {
            i: torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]]).item()
            for i in range(30)
            if i not in picks
        }
        picks.append(max(volume, key=volume.get))
    pairs = Distances(row.hidden, row.valid)
    assert greedy_map(pairs, relevance, row.valid, torch.tensor([9]))[0].tolist() == picks


def test_beyond_the_rank_the_most_relevant_go_on_and_none_twice():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[None]
    relevance = torch.tensor([[0.9, 1.0, 0.2, 0.5, 0.3]])
    order = greedy_map(
        Distances(hidden, everything(5)), relevance, everything(5), torch.tensor([9])
    )
    assert order.tolist() == [[1, 0, 3, 4, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_more_picks_than_dimensions_are_all_different(dtype):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 200, 8, generator=g).to(dtype)
    pairs = Distances(hidden, everything(200))
    order = greedy_map(
        pairs, torch.rand(1, 200, generator=g), everything(200), torch.tensor([150])
    )
    assert len(set(order[0].tolist())) == 150


def test_relevance_is_the_cosine_to_the_mean_text_by_its_range(make_row):
    hidden = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    text = torch.tensor([[[0.0, 1.0], [0.0, 5.0], [9.0, 9.0]]])
    said = torch.tensor([[True, True, False]])
    row = replace(make_row([(1, 3)]), hidden=hidden, text_hidden=text, text_valid=said)
    half = 2**-0.5
    assert text_relevance(row, 1)[0].tolist() == pytest.approx([0, 1, half], abs=1e-4)
    assert text_relevance(row, -1)[0].tolist() == pytest.approx([1, 0, 1 - half], abs=1e-4)


def test_where_all_are_equally_relevant_only_diversity_counts(make_row):
    row = make_row([(5, 5)])
    ones = replace(row, hidden=torch.ones_like(row.hidden))
    assert (text_relevance(ones, 1) == 1).all()
    silent = replace(row, text_valid=torch.zeros_like(row.text_valid))
    assert (text_relevance(silent, 1) == 1).all()


def test_the_sign_of_the_relevance_turns_the_choice(make_row):
    row = make_row([(6, 6)])
    text = row.hidden[:, 3:4].expand(-1, row.text_hidden.shape[1], -1)
    row = replace(row, text_hidden=text)
    kept = {
        sign: create("cdpruner", {"relevance": sign}).select(row, torch.tensor([1]))[0]
        for sign in ("positive", "negative")
    }
    assert kept["positive"].nonzero().tolist() == [[3]]
    assert kept["negative"].nonzero().tolist() != [[3]]
