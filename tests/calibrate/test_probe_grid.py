from __future__ import annotations

import math

import pytest

from tpcal.calibrate.probe_grid import (
    DEFAULT_KEEPS,
    DEFAULT_PARAMS,
    DEFAULT_SELECTORS,
    MAX_DEFAULT_LAYERS,
    coarse,
    default_layers,
    probes,
)
from tpcal.plans import selectors
from tpcal.plans.errors import UsageError


def test_the_default_grid_tries_everything_that_can_be_tried() -> None:
    grid = probes(8)
    drops = [p for p in grid if p.keep == 0]
    assert [p.layer for p in drops] == list(range(8))
    assert all(p.selector is None for p in drops)
    tried = {(p.layer, p.keep, p.selector) for p in grid if p.keep > 0 and not p.params}
    assert set(DEFAULT_SELECTORS) <= set(selectors.names())
    for name in DEFAULT_SELECTORS:
        for layer in range(8):
            for keep in DEFAULT_KEEPS[:-1]:
                assert ((layer, keep, name) in tried) == (layer >= selectors.min_layer(name))
    ((other, params),) = DEFAULT_PARAMS.items()
    special = [(p.layer, p.keep) for p in grid if (p.selector, p.params) == (other, params)]
    assert special == [(layer, keep) for layer in range(1, 8) for keep in DEFAULT_KEEPS[:-1]]
    assert len(tried) + len(drops) + len(special) == len(grid)


def test_layers_where_no_cut_may_stand_are_left_out() -> None:
    allowed = range(2, 6)
    assert default_layers(allowed) == [2, 3, 4, 5]
    assert {p.layer for p in probes(8, allowed=allowed)} == set(allowed)
    with pytest.raises(UsageError, match=r"layers must be in 2\.\.5 for this model; got 1"):
        probes(8, layers=[1], allowed=allowed)


def test_the_order_does_not_depend_on_the_order_of_the_wishes() -> None:
    one = probes(8, selectors=["random", "grid"], keeps=[0, 0.5], layers=[3, 1])
    other = probes(8, selectors=["grid", "random", "grid"], keeps=[0.5, 0], layers=[1, 3, 3])
    assert one == other
    assert [(p.layer, p.keep, p.selector) for p in one][:3] == [
        (1, 0.5, "grid"),
        (1, 0.5, "random"),
        (1, 0.0, None),
    ]


def test_deep_decoders_are_probed_at_evenly_spaced_layers() -> None:
    assert default_layers(range(8)) == list(range(8))
    assert default_layers(range(32)) == list(range(0, 32, 2))
    assert len(default_layers(range(28))) == MAX_DEFAULT_LAYERS
    assert default_layers(range(28))[0] == 0


def test_a_coarse_grid_has_every_drop_all_and_every_selector_at_every_keep_somewhere() -> None:
    whole = probes(8)
    some = coarse(whole)
    assert list(some) == [p for p in whole if p in set(some)]
    assert {p for p in whole if p.keep == 0} <= set(some)
    assert {p for p in whole if p.layer == 3} <= set(some)
    others = [
        (p.layer, p.keep, p.selector, dict(p.params)) for p in some if p.keep and p.layer != 3
    ]
    names, reading = sorted(DEFAULT_SELECTORS), ("attention", "balanced")
    assert others == [
        *[(0, 0.05, name, {}) for name in names if name not in reading],
        *[(1, 0.05, name, {}) for name in reading],
        (1, 0.05, "coverage", {"attention_power": 1.0}),
    ]


@pytest.mark.parametrize(
    ("n_layers", "layers"), [(1, {0}), (2, {0}), (4, {1}), (12, {2, 8}), (32, {4, 14, 24})]
)
def test_a_coarse_grid_looks_at_evenly_spaced_layers(n_layers: int, layers: set[int]) -> None:
    some = coarse(probes(n_layers, selectors=["grid"]))
    assert {p.layer for p in some if p.keep == 0.5} == layers


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"selectors": ["nrom"]}, "No selector is called 'nrom'"),
        ({"keeps": [1.0]}, r"keeps must be in \[0, 1\); got 1"),
        ({"keeps": [-0.1]}, "keeps must be"),
        ({"keeps": [math.nan]}, "keeps must be"),
        ({"layers": [8]}, "layers must be in 0..7 for this model; got 8"),
        ({"layers": [-1]}, "layers must be"),
        ({"layers": []}, "must hold a cut"),
        ({"keeps": []}, "must hold a cut"),
        ({"layers": [0], "keeps": [0.5], "selectors": ["attention"]}, "start at layer 1"),
    ],
)
def test_bad_wishes_are_refused(wish: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probes(8, **wish)
