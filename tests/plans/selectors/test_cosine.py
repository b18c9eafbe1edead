from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import (
    Distances,
    all_distances,
    directions,
    distances,
    real_places,
)

FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def states(n: int, d: int, spread: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """[n, d] around one direction; ``spread`` 0.01 makes near duplicates."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, d, generator=g, dtype=torch.float64)
    return (torch.randn(1, d, generator=g, dtype=torch.float64) + spread * noise).to(dtype)


def exact(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    return 1 - unit @ unit.T


@FLOATS
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_distances_are_those_of_float64_on_the_grid(dtype, spread, scale):
    x = (scale * states(200, 512, spread, torch.float32)).to(dtype)
    found = all_distances(directions(x))
    assert found.dtype == torch.float32
    assert torch.equal(found, found.mT)
    steps = 2**18
    assert (found * steps == (found * steps).round()).all()
    assert (found.double() - exact(x)).abs().max() < 5 / 4 / steps


def test_float64_stays():
    x = states(70, 32, 1.0, torch.float64)
    assert (all_distances(directions(x)) - exact(x)).abs().max() < 1e-12


@FLOATS
def test_equal_tokens_are_at_no_distance(dtype):
    x = states(1, 4096, 1.0, dtype).repeat(130, 1)
    assert (all_distances(directions(x)) == 0).all()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_token_without_direction_is_at_distance_one_from_all(value):
    x = states(5, 8, 1.0, torch.float32)
    x[2] = value
    far = distances(directions(x), directions(x))
    assert (far[2] == 1).all()
    assert (far[:, 2] == 1).all()
    others = torch.tensor([0, 1, 3, 4])
    assert (far[others][:, others] - exact(x[others])).abs().max() < 1e-5


def test_real_places_are_a_slice_where_filler_stands_at_the_right():
    valid = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]]).bool()
    first, whole, nothing, right = real_places(valid)
    assert (first, whole, nothing) == (slice(0, 2), slice(0, 3), slice(0, 0))
    assert right.tolist() == [1, 2]


def batch(rows: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    x = torch.full((len(rows), width, rows[0].shape[-1]), torch.nan, dtype=rows[0].dtype)
    valid = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        x[b, : len(row)], valid[b, : len(row)] = row, True
    return x, valid


@FLOATS
@pytest.mark.parametrize("whole", [4096, 100, 0])
def test_a_row_has_the_same_bits_in_any_company(dtype, whole, monkeypatch):
    monkeypatch.setattr(Distances, "WHOLE", whole)
    monkeypatch.setattr(Distances, "CHUNK", 1 << 14)
    rows = [states(n, 1000, 0.01, dtype, n) for n in (333, 1, 120, 97)]
    for width in (333, 341, 500):
        together = Distances(*batch(rows, width))
        for b, row in enumerate(rows):
            n, alone = len(row), Distances(row[None], torch.ones(1, len(row), dtype=torch.bool))
            pick = torch.tensor([min(b * 31, n - 1)])
            assert torch.equal(
                together.to(pick.expand(4).clamp(max=0) + pick)[b, :n], alone.to(pick)[0]
            )
            assert torch.equal(together.total()[b, :n], alone.total()[0])
            valid = torch.arange(width) < n
            among = valid.expand(4, -1)
            assert torch.equal(together.nearest(among)[b, :n], alone.nearest(valid[None, :n])[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_asked_for_piece_by_piece_they_are_the_same(dtype, monkeypatch):
    x = states(90, 64, 1.0, dtype)[None].repeat(2, 1, 1)
    valid = torch.ones(2, 90, dtype=torch.bool)
    valid[1, ::4] = False
    among, pick = valid & (torch.arange(90) % 3 == 0), torch.tensor([5, 6])
    whole = Distances(x, valid)
    monkeypatch.setattr(Distances, "WHOLE", 40)
    monkeypatch.setattr(Distances, "CHUNK", 1000)
    pieces = Distances(x, valid)
    assert pieces._table is None
    step = {"rtol": 0, "atol": 2.0**-16}
    assert torch.allclose(pieces.to(pick), whole.to(pick), **step)
    assert torch.allclose(pieces.nearest(among)[valid], whole.nearest(among)[valid], **step)
    assert torch.allclose(pieces.total()[valid], whole.total()[valid], rtol=0, atol=90 * 2.0**-16)


@pytest.mark.parametrize("whole", [4096, 8])
def test_a_row_of_text_beside_a_long_one_has_no_tokens(whole, monkeypatch):
    monkeypatch.setattr(Distances, "WHOLE", whole)
    x, valid = torch.randn(2, 9, 4), torch.tensor([[True] * 9, [False] * 9])
    both, alone = Distances(x, valid), Distances(x[:1], valid[:1])
    assert torch.equal(both.nearest(valid)[0], alone.nearest(valid[:1])[0])
    assert torch.equal(both.total()[0], alone.total()[0])
    weight = valid.double()
    assert torch.equal(both.closeness(weight)[0], alone.closeness(weight[:1])[0])
    assert torch.isinf(both.nearest(valid)[1]).all()


def test_the_nearest_other_token_is_another_one():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    pairs = Distances(x, torch.ones(1, 3, dtype=torch.bool))
    assert pairs.nearest(torch.tensor([[True, True, True]])).tolist() == [[0.0, 0.0, 1.0]]
    assert pairs.nearest(torch.tensor([[True, False, False]])).tolist() == [[torch.inf, 0.0, 1.0]]
