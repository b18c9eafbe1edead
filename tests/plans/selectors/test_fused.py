"""The kernels of the greedy loops pick what the loops pick; Triton interprets them on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tpcal.plans.selectors import _fused
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.base import order_mask
from tpcal.plans.selectors.cdpruner import greedy_map
from tpcal.plans.selectors.coverage import covering
from tpcal.plans.selectors.diversity import max_min, max_sum
from tpcal.plans.selectors.vispruner import Groups, distinct, widths

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1"
)
FUSED = []


@pytest.fixture
def fused(monkeypatch):
    """Calls a function as on a GPU, and says how many kernels took its loops' place."""

    def call(function, *given) -> tuple[Tensor, int]:
        n_before = len(FUSED)
        with monkeypatch.context() as patch:
            patch.setattr(_fused, "available", lambda table: FUSED.append(1) or True)
            return function(*given), len(FUSED) - n_before

    return call


@pytest.fixture(params=[torch.float32, torch.float64])
def batch(request):
    """Rows of 45 tokens and less, with repeats, filler, and several that are equally far."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 45, 12, generator=g, dtype=torch.float64).to(request.param)
    x[1, 7:20] = x[1, :13].clone()
    x[3] = torch.eye(12, dtype=x.dtype)[torch.arange(45) % 12]
    valid = torch.arange(45) < torch.tensor([45, 30, 9, 45])[:, None]
    return Distances(x, valid), valid, torch.tensor([20, 30, 0, 17])


def test_farthest_first_with_and_without_seeds(batch, fused):
    pairs, valid, n_picks = batch
    seeds = order_mask(torch.tensor([[3, 9], [-1, -1], [2, -1], [0, 1]]), 45)
    for given in ((pairs, valid, n_picks), (pairs, valid, n_picks, seeds)):
        found, n_fused = fused(max_min, *given)
        assert n_fused == 1
        assert torch.equal(found, max_min(*given))


def test_the_largest_sum(batch, fused):
    pairs, valid, n_picks = batch
    given = pairs, torch.tensor([4, 0, 8, 44]), valid, n_picks
    found, n_fused = fused(max_sum, *given)
    assert n_fused == 1
    assert torch.equal(found, max_sum(*given))


@pytest.mark.parametrize("alone", [64, 32])
def test_the_greedy_map_of_a_determinantal_process(alone, batch, fused, monkeypatch):
    from tpcal.plans.selectors import _triton

    monkeypatch.setattr(_triton, "_ALONE", alone)  # one program a row, or several a pick
    pairs, valid, n_picks = batch
    relevance = torch.rand(valid.shape, generator=torch.Generator().manual_seed(1)).double()
    relevance[3] = 1.0
    found, n_fused = fused(greedy_map, pairs, relevance, valid, n_picks)
    assert n_fused == 1
    assert torch.equal(found, greedy_map(pairs, relevance, valid, n_picks))


@pytest.mark.parametrize(("attended", "columns"), [("covered", 1024), ("picks", 16)])
def test_the_best_coverage(attended, columns, batch, fused, monkeypatch):
    from tpcal.plans.selectors import _triton

    monkeypatch.setattr(_triton, "_COLUMNS", columns)  # one tile wide, or three
    pairs, valid, n_picks = batch
    noise = torch.rand(valid.shape, generator=torch.Generator().manual_seed(1))
    weight = ((noise * 2**20).ceil().double() / 2**20).masked_fill(~valid, 0)
    weight[3] = 1.0
    if pairs.table.dtype == torch.float64:  # whose distances leave no room for exact weights
        weight = valid.double()
    weights = (weight, valid.double()) if attended == "covered" else (valid.double(), weight)
    given = (pairs, *weights, n_picks, 30)
    found, n_fused = fused(covering, *given)
    assert n_fused == 1
    assert torch.equal(found, covering(*given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounds_that_thin_groups(dtype, fused):
    sizes = [(70, 33, 9), (1, 0, 4), (22, 22, 1), (0, 0, 2), (30, 0, 9), (69, 1, 50)]
    g = torch.Generator().manual_seed(0)
    far = torch.randint(-3, 4, (len(sizes), 70, 70), generator=g).to(dtype) / 3  # many are equal
    far[far == 0] *= -1  # both zeros are equal too
    given = far, Groups(*torch.tensor(sizes).T), widths(sizes)
    found, n_fused = fused(distinct, *given)
    assert n_fused == 1
    assert torch.equal(found, distinct(*given))
