"""Keeps that follow the input: rules keep the mean cost, and gain only where a feature tells."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.adaptive_keeps import __main__ as adaptive_keeps
from benchmarks.adaptive_keeps.policies import (
    Levels,
    by_feature,
    by_rows,
    cheapest,
    score,
    shuffled,
)
from tpcal.plans.plan_records import Cut, Plan

COSTS = np.array([0.1, 0.2, 0.4])


def _samples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] a feature, and [n, 3] losses: the quarter with the most of it needs the last level."""
    feature = np.random.default_rng(seed).random(n)
    hard = feature > 3 / 4
    return feature, np.where(hard[:, None], [1.0, 1.0, 0.0], [0.01, 0.0, 0.0])


def test_a_feature_that_tells_which_samples_are_hard_gains_at_equal_cost() -> None:
    feature, losses = _samples(600, 0)
    others, lost = _samples(600, 1)
    levels = Levels(losses, COSTS, budget=0.2)
    for sign in (1, -1):  # more of a feature may mean more tokens, or fewer
        shares = by_feature(levels, sign * feature, sign * others)
        assert (shares.sum(axis=1) == 1).all()
        assert (shares @ COSTS).mean() == pytest.approx(0.2, abs=0.015)
        assert (shares * lost).sum(axis=1).mean() < 0.05 < lost[:, 1].mean()
    own, asked = shuffled((feature, others), seed=0)
    assert (by_feature(levels, own, asked) * lost).sum(axis=1).mean() > 0.1


@pytest.mark.parametrize("rising", [False, True])
def test_the_levels_of_rows_are_the_best_that_the_budget_pays(rising: bool) -> None:
    losses = np.random.default_rng(0).random((4, 3)).round(2)
    weights, budget = np.array([1.0, 3.0, 2.0, 2.0]), 0.25
    best = min(
        float(weights @ losses[range(4), chosen])
        for chosen in product(range(3), repeat=4)
        if weights @ COSTS[list(chosen)] <= budget * weights.sum() + 1e-9
        if not rising or sorted(chosen) == list(chosen)
    )
    levels = Levels(losses, COSTS, budget)
    shares = cheapest(levels, weights, rising=rising)
    assert float(weights @ (shares * losses).sum(axis=1)) == pytest.approx(best)
    bound = cheapest(levels, weights, whole=False)
    assert float(weights @ (bound * losses).sum(axis=1)) <= best
    assert float(weights @ (bound @ COSTS)) <= budget * weights.sum() + 1e-6


def test_rows_without_samples_cost_nothing() -> None:
    losses = np.array([[1.0, 0.5, 0.0]] * 4)
    shares = by_rows(Levels(losses, COSTS, budget=0.2), np.array([0, 0, 2, 2]), 3)
    assert float((shares[[0, 0, 2, 2]] @ COSTS).mean()) <= 0.2 + 1e-6


def test_a_regression_predicts_held_out_samples_from_the_others() -> None:
    rng = np.random.default_rng(0)
    known, others = rng.normal(size=(200, 3)), rng.normal(size=(50, 3))
    slope = np.array([0.5, 0.0, -0.2])
    own, asked = score(known, known @ slope + 0.3, others)
    assert np.corrcoef(own, known @ slope)[0, 1] > 0.99
    assert asked == pytest.approx(others @ slope + 0.3, abs=0.05)
    noise, _ = score(rng.normal(size=(200, 40)), known @ slope, rng.normal(size=(50, 40)))
    assert abs(np.corrcoef(noise, known @ slope)[0, 1]) < 0.3  # a fit in sample reaches 0.4


def test_a_ladder_multiplies_all_keeps_and_leaves_the_plan_itself() -> None:
    plan = Plan((Cut(0, 0.4, "grid"), Cut(3, 0.2, "diversity"), Cut(7, 0.0)))
    ladder = adaptive_keeps.Ladder(plan, (0.5, 1.0, 3.0))
    assert [[cut.keep for cut in level.cuts] for level in ladder.plans] == [
        [0.2, 0.1, 0.0],
        [0.4, 0.2, 0.0],
        [1.0, pytest.approx(0.6), 0.0],
    ]
    assert ladder.plans[ladder.fixed] == plan
    assert (np.diff(ladder.costs) > 0).all()


def test_the_benchmark_judges_every_policy_beside_the_fixed_plan(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = ["--quick", "--plan", adaptive_keeps.PLANS[0], "--output", str(out)]
    done = CliRunner().invoke(adaptive_keeps.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (made,) = json.loads(out.read_text())["plans"].values()
    rows = {row["policy"]: row for row in made["policies"]}
    assert len(rows) == 18
    assert all(name in done.output for name in rows)
    fixed, bound = rows["fixed"], rows["own losses (bound)"]
    assert fixed["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert fixed["cost"] == pytest.approx(0.0998, abs=1e-4)
    assert bound["cost"] <= fixed["cost"] + 1e-6
    # A rule that costs no more on these samples cannot beat the choice in hindsight.
    assert all(
        row["loss"] >= bound["loss"] for row in rows.values() if row["cost"] <= bound["cost"]
    )
    assert rows["image: similarity"]["gain"]["value"] == pytest.approx(
        fixed["loss"] - rows["image: similarity"]["loss"]
    )
