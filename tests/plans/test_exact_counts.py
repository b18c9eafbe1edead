"""The counts that meet a budget, against all counts tried one by one, and the work they take."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
import pytest

from tpcal.plans.budget_projection import project
from tpcal.plans.exact_counts import REACHES, _scaled, fit_counts
from tpcal.plans.plan_records import Cut

N_CASES = 5000
MOST_TOKENS = {1: 60, 2: 60, 3: 25, 4: 13}  # by the number of cuts
MOST_LINES = 5_000
"""Lines of Python that one projection may run. Up to 3,700 were seen; trying all counts takes
millions."""


@cache
def all_counts(n_cuts: int) -> np.ndarray:
    """[n, n_cuts] all non-increasing counts up to the most tokens of these tests, sorted."""
    falling = itertools.combinations_with_replacement(range(MOST_TOKENS[n_cuts], 0, -1), n_cuts)
    return np.array(sorted(falling))


def by_trying(
    counts: tuple[int, ...], widths: tuple[int, ...], budget: int, least: int, most: int
) -> tuple[tuple[int, ...], str]:
    """What `fit_counts` has to return, and by which rule it was chosen from all counts."""
    tried = all_counts(len(counts))
    tried = tried[(tried[:, 0] <= most) & (tried[:, -1] >= least)]
    costs = tried @ widths
    best = costs[costs <= budget].max()
    exact = tried[costs == best]
    if (exact == counts).all(axis=1).any():
        return counts, "kept"
    # The nearest counts within the smallest sufficient reach of all but the last; of equally near
    # ones the first in order.
    moves = np.abs(exact - _scaled(counts, widths, budget, least, most))
    for reach in REACHES:
        near = (moves[:, :-1] <= reach).all(axis=1)
        if near.any():
            at = np.flatnonzero(near)[moves.sum(axis=1)[near].argmin()]
            return tuple(exact[at].tolist()), f"reach {reach}"
    # As many tokens as possible stay through all cuts; then as many as possible leave at the
    # second cut, then at the third.
    order = [(int(c[0] - c[-1]), *np.diff(c).tolist()) for c in exact]
    return tuple(exact[order.index(min(order))].tolist()), "built"


def random_case(rng: np.random.Generator) -> tuple[Any, ...]:
    """Arguments of `fit_counts`; many budgets are near the least or the largest possible one."""
    n_cuts = int(rng.integers(1, 5))
    most = int(rng.integers(2, MOST_TOKENS[n_cuts] + 1))
    least = int(rng.integers(1, max(2, most // 3)))
    widths = rng.integers(1, rng.choice([3, 8, 30], n_cuts)) * rng.integers(1, 4)
    counts = sorted(rng.integers(1, most + 1, n_cuts).tolist(), reverse=True)
    low, high = least * int(widths.sum()), most * int(widths.sum())
    near = int(rng.integers(0, min(high - low, 60) + 1))
    budget = rng.choice([low + near, high - near, rng.integers(low, high + 1)])
    return tuple(counts), tuple(widths.tolist()), int(budget), least, most


def test_the_counts_are_those_that_trying_all_would_choose() -> None:
    rng, rules = np.random.default_rng(0), Counter[str]()
    for _ in range(N_CASES):
        case = random_case(rng)
        wanted, rule = by_trying(*case)
        assert fit_counts(*case) == wanted, case
        rules[rule] += 1
    assert set(rules) == {"kept", *(f"reach {reach}" for reach in REACHES), "built"}
    assert min(rules.values()) >= 5


class TooManyLines(Exception):
    """Raised inside the code that runs them."""


def n_lines(*args: Any) -> int:
    """Lines of Python that a projection runs, at most `MOST_LINES`."""
    n = 0

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal n
        n += event == "line"
        if n > MOST_LINES:
            raise TooManyLines
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        project(*args)
    finally:
        sys.settrace(before)
    return n


@pytest.mark.parametrize("n_cuts", [2, 4, 8])
@pytest.mark.parametrize(
    ("n_layers", "n_tokens"), [(48, 256), (64, 64), (80, 64), (80, 256), (80, 10_000)]
)
def test_deep_decoders_with_few_tokens_take_few_steps(
    n_layers: int, n_tokens: int, n_cuts: int
) -> None:
    rng = np.random.default_rng(0)
    for target in (0.05, 0.1, 0.1, 0.3, 0.98):
        layers = sorted(rng.choice(n_layers, size=n_cuts, replace=False).tolist())
        keeps = sorted(rng.uniform(0.02, 1, n_cuts).tolist(), reverse=True)
        cuts = [Cut(*cut, "grid") for cut in zip(layers, keeps, strict=True)]
        assert n_lines(cuts, target, n_tokens, n_layers) <= MOST_LINES
