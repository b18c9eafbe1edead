from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tpcal.plans.budget_projection import Limits, exact_keep, project, spent
from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.plan_records import Condition, Cut, Plan, n_keep


def random_cuts(rng: np.random.Generator, n_layers: int) -> list[Cut]:
    layers = sorted(rng.choice(n_layers, size=rng.integers(1, 4), replace=False).tolist())
    keeps = sorted(rng.uniform(0.02, 1, len(layers)).tolist(), reverse=True)
    cuts = [Cut(layer, keep, "grid") for layer, keep in zip(layers, keeps, strict=True)]
    if rng.random() < 0.4 and layers[-1] + 1 < n_layers:
        cuts.append(Cut(int(rng.integers(layers[-1] + 1, n_layers)), 0.0))
    return cuts


def random_limits(rng: np.random.Generator) -> Limits:
    n_layers = int(rng.integers(4, 40))
    n_tokens = int(rng.choice([36, 144, 256, 576, 577, 1024]))
    return Limits(
        n_tokens,
        n_layers,
        min_count=int(rng.integers(1, max(2, n_tokens // 16))),
        first_layer=int(rng.integers(0, 3)),
        first_drop=None if rng.random() < 0.2 else int(rng.integers(1, n_layers)),
    )


@pytest.mark.parametrize("seed", range(40))
def test_projection_meets_the_budget_within_one_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(25):
        limits = random_limits(rng)
        n, n_layers = limits.n_tokens, limits.n_layers
        cuts = random_cuts(rng, n_layers)
        floor = limits.cheapest / (n * n_layers)
        target = float(rng.uniform(floor, 1))
        found = project(cuts, target, n, n_layers, limits=limits)
        schedule = Plan(cuts=found).schedule(n, n_layers)
        assert sum(schedule) <= target * n * n_layers + 1e-6
        assert target * n - sum(schedule) / n_layers <= 1
        assert [c.layer for c in found] == sorted({c.layer for c in found})
        assert all(a.keep > b.keep for a, b in itertools.pairwise(found))
        for cut in found:
            count = n_keep(cut.keep, n)
            assert count >= limits.min_count or count == 0
            first = limits.first_layer if count else limits.first_drop
            assert first is not None
            assert first <= cut.layer < n_layers
            assert (cut.selector is None) == (count == 0)
        assert project(found, target, n, n_layers, limits=limits) == found


@pytest.mark.parametrize("seed", range(30))
def test_no_counts_on_the_same_layers_come_closer_to_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_layers = 12, int(rng.integers(4, 9))
    cuts = [cut for cut in random_cuts(rng, n_layers) if cut.keep > 0]
    target = float(rng.uniform(0.2, 0.95))
    found = project(cuts, target, n, n_layers)
    budget = math.floor(target * n * n_layers)
    if tuple(c.layer for c in found) != tuple(c.layer for c in cuts):
        assert spent(found, n, n_layers) <= budget
        return
    ends = [*[c.layer for c in cuts[1:]], n_layers]
    widths = [end - c.layer for c, end in zip(cuts, ends, strict=True)]
    best = 0
    for counts in itertools.product(range(1, n + 1), repeat=len(cuts)):
        if all(a >= b for a, b in itertools.pairwise(counts)):
            cost = n * cuts[0].layer + sum(c * w for c, w in zip(counts, widths, strict=True))
            best = max(best, cost) if cost <= budget else best
    assert spent(found, n, n_layers) == best


def test_keeps_are_scaled_together() -> None:
    cuts = [Cut(2, 0.8, "grid"), Cut(16, 0.4, "grid")]
    found = project(cuts, 0.3, 576, 32)
    assert found[0].keep / found[1].keep == pytest.approx(2, rel=0.05)


def test_the_published_btp_schedule_costs_what_its_paper_says() -> None:
    cuts = [Cut(3, 0.5, "grid"), Cut(6, 0.25, "grid"), Cut(14, 0.083333, "grid"), Cut(22, 0.0)]
    assert spent(cuts, 576, 32) == 129 * 32
    assert [n_keep(c.keep, 576) for c in project(cuts, 129 / 576, 576, 32)] == [288, 144, 48, 0]


@pytest.mark.parametrize("n_tokens", [1, 7, 36, 144, 576, 577, 2880])
def test_every_count_has_a_keep_that_gives_it_back(n_tokens: int) -> None:
    for count in range(1, n_tokens + 1):
        assert n_keep(exact_keep(count, n_tokens), n_tokens) == count


def test_a_budget_of_one_is_a_plan_without_cuts() -> None:
    assert project([Cut(3, 0.5, "grid")], 1.0, 144, 12) == ()


def test_a_lone_drop_all_moves_to_the_layer_the_budget_buys() -> None:
    found = project([Cut(16, 0.0)], 0.25, 576, 32)
    assert found[-1] == Cut(9, 0.0)
    assert found[0].layer >= 7
    assert spent(found, 576, 32) == 576 * 8


def test_a_drop_all_too_early_for_the_budget_moves_down() -> None:
    found = project([Cut(1, 0.5, "grid"), Cut(3, 0.0)], 0.5, 144, 12)
    assert spent(found, 144, 12) == 864
    assert found[-1].layer >= 7


def test_a_conditional_cut_is_left_out() -> None:
    cuts = [Cut(0, 0.2, "grid"), Cut(8, 0.0, condition=Condition(0.1))]
    assert [c.layer for c in project(cuts, 0.2, 144, 12)] == [0]


@pytest.mark.parametrize("target", [0, -0.1, 1.5, math.nan, math.inf])
def test_a_budget_outside_its_range_is_refused(target: float) -> None:
    with pytest.raises(UsageError, match=rf"^budget must be in \(0, 1\]; got {target}\.$"):
        project([], target, 144, 12)


def test_a_budget_below_reach_names_the_smallest_that_can_be_met() -> None:
    limits = Limits(144, 12, min_count=14, first_layer=2, first_drop=6)
    with pytest.raises(BudgetError, match=r"budget must be at least 0\.1991 .*; got 0\.1\.") as e:
        project([Cut(0, 0.5, "grid")], 0.1, 144, 12, limits=limits)
    assert e.value.exit_code == 3
    found = project([Cut(0, 0.5, "grid")], e.value.reachable, 144, 12, limits=limits)
    assert spent(found, 144, 12) == 144 * 2 + 14 * 4


@pytest.mark.parametrize("target", [0.25, 0.4, 0.7])
def test_no_cut_stands_behind_the_last_layer_that_allows_one(target) -> None:
    limits = Limits(144, 12, min_count=4, stop_layer=5)
    late = [Cut(2, 0.5, "grid"), Cut(7, 0.3, "grid"), Cut(9, 0.0)]
    met = project(late, target, 144, 12, limits=limits)
    assert max(cut.layer for cut in met) < 5
    assert 0 <= target * 144 * 12 - spent(met, 144, 12) <= 12


def test_the_cheapest_plan_drops_all_only_where_it_may() -> None:
    assert Limits(144, 12, min_count=4, first_drop=6, stop_layer=5).cheapest == 4 * 12
    assert Limits(144, 12, min_count=4, first_drop=3, stop_layer=5).cheapest == 4 * 3
