from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create, needs
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.coverage import _of_rows, covering


def textbook(distance, covered_weight, picked_weight, n_picks):
    """The greedy rule as it is written down, with all sums anew at every pick."""
    picks, left = [], torch.ones(len(distance), dtype=torch.float64)
    for _ in range(n_picks):
        gain = (covered_weight[:, None] * (left[:, None] - distance.double()).clamp(min=0)).sum(0)
        gain *= picked_weight
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        left = torch.minimum(left, distance[:, picks[-1]].double())
    return picks


@pytest.fixture(params=["covered", "picks"])
def case(request, make_row, stack):
    """Tokens, weights of what is covered and of what is picked, and numbers of picks."""
    tokens = stack([make_row([(6, 7)]), make_row([(4, 5), (3, 3)], 1), make_row([(1, 1)], 2)])
    noise = torch.rand(tokens.valid.shape, generator=torch.Generator().manual_seed(0))
    weight = ((noise * 2**20).ceil().double() / 2**20).masked_fill(~tokens.valid, 0)
    alike, n_picks = tokens.valid.double(), torch.tensor([11, 29, 0])
    weights = (weight, alike) if request.param == "covered" else (alike, weight)
    return tokens, weights, n_picks


def test_it_is_the_textbook_rule(case):
    tokens, (covered, picked), n_picks = case
    pairs = Distances(tokens.hidden, tokens.valid)
    order = covering(pairs, covered, picked, n_picks, 29)
    for b, n in enumerate(n_picks.tolist()):
        of = tokens.valid[b].sum()
        expected = textbook(pairs.table[b, :of, :of], covered[b, :of], picked[b, :of], n)
        assert order[b].tolist() == expected + [-1] * (29 - n)


def test_a_gpu_and_long_rows_pick_the_same(case, monkeypatch):
    tokens, weights, n_picks = case
    pairs = Distances(tokens.hidden, tokens.valid)
    order = covering(pairs, *weights, n_picks, 29)
    assert torch.equal(_of_rows(pairs, pairs.table, *weights, n_picks, 29), order)
    for whole, chunk in ((35, 1 << 22), (8, 100)):
        monkeypatch.setattr(Distances, "WHOLE", whole)
        monkeypatch.setattr(Distances, "CHUNK", chunk)
        long = Distances(tokens.hidden, tokens.valid)
        assert long.table is None
        assert torch.equal(covering(long, *weights, n_picks, 29), order)


@pytest.mark.parametrize("whole", [4096, 35, 8])
def test_distances_are_raised_to_a_power(whole, make_row, monkeypatch):
    monkeypatch.setattr(Distances, "WHOLE", whole)
    row = make_row([(5, 7)])
    plain = Distances(row.hidden, row.valid).to_all(0, torch.arange(35))
    raised = Distances(row.hidden, row.valid, power=2.0)
    found = raised.to_all(0, torch.arange(35))
    torch.testing.assert_close(found, plain**2, rtol=0, atol=2**-18)
    assert torch.equal(raised.to(torch.tensor([3]))[0], found[3])


def test_few_tokens_stand_for_all_clusters_and_the_largest_one_comes_first(make_row):
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    cluster = torch.tensor([0] * 8 + [1] * 5 + [2] * 3 + [3] * 3 + [4])
    row = make_row([(4, 5)])
    row = replace(row, hidden=(centres[cluster] + 1e-3 * row.hidden[0])[None])
    mask = create("coverage").select(row, torch.tensor([5]))
    assert sorted(cluster[mask[0]].tolist()) == [0, 1, 2, 3, 4]
    assert cluster[create("coverage").select(row, torch.tensor([1]))[0]].tolist() == [0]


@pytest.mark.parametrize("attended", ["covered", "picks"])
def test_attention_says_whom_to_cover(attended, make_row):
    # Two clusters: many tokens that nobody attends to, and two that the question asks about.
    centres = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    cluster = torch.tensor([0] * 18 + [1] * 2)
    row = make_row([(4, 5)])
    logits = torch.where(cluster == 1, 6.0, 0.0).expand_as(row.logits)
    row = replace(
        row,
        hidden=(centres[cluster] + 1e-3 * row.hidden[0])[None],
        logits=logits,
        lse=logits.logsumexp(-1),
    )
    one = torch.tensor([1])
    assert cluster[create("coverage").select(row, one)[0]].tolist() == [0]
    selector = create("coverage", {"attention_power": 1.0, "attended": attended})
    assert cluster[selector.select(row, one)[0]].tolist() == [1]


@pytest.mark.parametrize(("power", "needed"), [(0.0, set()), (0.5, {"scores"})])
def test_it_looks_at_attention_only_if_it_counts(power, needed):
    assert needs("coverage", {"attention_power": power}) == needed
