from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.diversity import first_token, max_min, max_sum


def test_max_min_is_the_textbook_loop(make_row):
    row = make_row([(6, 7)], dtype=torch.float64)
    unit = torch.nn.functional.normalize(row.hidden[0], dim=-1)
    distance = 1 - unit @ unit.T
    first = int(distance.fill_diagonal_(9).amin(1).argmax())
    picks = [first]
    while len(picks) < 11:
        nearest = distance[picks].amin(0)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    order = max_min(Distances(row.hidden, row.valid), row.valid, torch.tensor([11]))
    assert order[0].tolist() == picks


def test_max_sum_is_the_textbook_loop(make_row):
    row = make_row([(6, 7)], dtype=torch.float64)
    unit = torch.nn.functional.normalize(row.hidden[0], dim=-1)
    picks = [4]
    while len(picks) < 11:
        total = (unit @ unit[picks].T).sum(1)
        total[picks] = 99
        picks.append(int(total.argmin()))
    order = max_sum(
        Distances(row.hidden, row.valid), torch.tensor([4]), row.valid, torch.tensor([11])
    )
    assert order[0].tolist() == picks


@pytest.mark.parametrize("rule", ["max_sum", "max_min"])
def test_a_row_too_long_for_a_table_takes_its_own_number_of_steps(rule, monkeypatch):
    lengths, n_picks = torch.tensor([60, 33, 0]), torch.tensor([20, 7, 0])
    x = torch.randn(3, 60, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid, pivot = torch.arange(60) < lengths[:, None], torch.tensor([4, 2, 0])

    def picked():
        pairs = Distances(x, valid)
        return (
            max_sum(pairs, pivot, valid, n_picks)
            if rule == "max_sum"
            else max_min(pairs, valid, n_picks)
        )

    expected = picked()
    monkeypatch.setattr(Distances, "WHOLE", 10)
    asked, to_all = [], Distances.to_all
    monkeypatch.setattr(Distances, "to_all", lambda s, *a: asked.append(1) or to_all(s, *a))
    assert torch.equal(picked(), expected)
    assert len(asked) == 27


def test_max_min_takes_one_of_each_cluster(make_row):
    row = make_row([(4, 5)])
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    hidden = centres.repeat(4, 1) + 1e-3 * row.hidden[0]
    mask = create("diversity").select(replace(row, hidden=hidden[None]), torch.tensor([5]))
    assert sorted(i % 5 for i in mask[0].nonzero()[:, 0].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("pivot", "place"), [("first", 0), ("norm", 3), ("farthest", 2), ("centre", 1), (4, 1), (9, 3), (0, 0)]
)  # fmt: skip
def test_the_first_token_is_the_one_named(pivot, place, make_row):
    hidden = torch.tensor([[[1.0, 0.5], [1.0, -0.15], [0.0, -1.0], [5.0, -0.5]]])
    row = replace(make_row([(2, 2)]), hidden=hidden, index=torch.tensor([[1, 3, 6, 8]]))
    assert first_token(row, pivot, Distances(hidden, row.valid)).tolist() == [place]
