"""Rules that give every sample a level of a plan, fitted on calibration samples at equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
N_BINS = 8
"""Ranges of a feature, each with as many calibration samples, that get one level each."""
N_FOLDS = 5
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties that are tried, on standardised features."""


@dataclass(frozen=True, eq=False)
class Levels:
    """What n samples lose at each of J levels, in the order of rising cost."""

    losses: Floats
    """[n, J] nats."""
    costs: Floats
    """[J] layer averages of keep."""
    budget: float
    """Largest mean cost."""


def cheapest(
    levels: Levels, weights: Floats, *, whole: bool = True, rising: bool = False
) -> Floats:
    """[R, J] the share of each level in each row that minimises the mean loss within the budget.

    Args:
        levels: The mean losses of R rows.
        weights: [R] samples of each row.
        whole: Every row gets one level. Otherwise one row may be divided between two, so that the
            result is a bound of what whole levels reach.
        rising: No row gets a lower level than the row before it.

    Source:
        An integer program, solved by HiGHS (scipy.optimize.milp).
    """
    n_rows, n_levels = levels.losses.shape
    one_each = sparse.kron(sparse.eye_array(n_rows), np.ones((1, n_levels)))
    cost = (weights[:, None] * levels.costs).reshape(1, -1)
    within = levels.budget * weights.sum() * (1 + 1e-9)  # the fixed plan itself has to fit
    rules = [LinearConstraint(one_each, 1, 1), LinearConstraint(cost, ub=within)]
    if rising and n_rows > 1:
        step = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(n_rows - 1, n_rows))
        order = sparse.kron(step, np.arange(n_levels)[None].astype(float))
        rules.append(LinearConstraint(order, lb=0))
    found = milp(
        (weights[:, None] * levels.losses).ravel(),
        integrality=np.full(n_rows * n_levels, int(whole)),
        bounds=Bounds(0, 1),
        constraints=rules,
    )
    assert found.x is not None, found.message
    shares = found.x.reshape(n_rows, n_levels)
    return shares.round() if whole else shares


def by_rows(levels: Levels, rows: Ints, n_rows: int, *, rising: bool = False) -> Floats:
    """[R, J] the levels of rows of samples.

    Args:
        levels: The losses of n samples.
        rows: [n] the row of each sample.
        n_rows: Number of rows, R; one without samples costs nothing.
        rising: No row gets a lower level than the row before it.
    """
    weights = np.bincount(rows, minlength=n_rows).astype(float)
    sums = np.stack([np.bincount(rows, x, n_rows) for x in levels.losses.T], axis=1)
    means = sums / np.maximum(weights, 1)[:, None]
    return cheapest(Levels(means, levels.costs, levels.budget), weights, rising=rising)


def by_feature(levels: Levels, feature: Floats, others: Floats) -> Floats:
    """[m, J] levels of other samples by a monotone rule of one feature.

    The feature's range is cut at its quantiles into `N_BINS`. More of the feature means a higher
    level, or a lower one, whichever loses less on the calibration samples.

    Args:
        levels: The losses of n calibration samples.
        feature: [n] the feature of the same samples.
        others: [m] the feature of the samples that are given levels.
    """
    edges = np.unique(np.quantile(feature, np.linspace(0, 1, N_BINS + 1)[1:-1]))
    ends = len(edges)
    tried = []
    for up in (True, False):
        rows, asked = (np.searchsorted(edges, x, side="right") for x in (feature, others))
        if not up:
            rows, asked = ends - rows, ends - asked
        shares = by_rows(levels, rows, ends + 1, rising=True)
        tried.append((float((shares[rows] * levels.losses).sum()), shares[asked]))
    return min(tried, key=lambda pair: pair[0])[1]


def score(known: Floats, losses: Floats, others: Floats) -> tuple[Floats, Floats]:
    """[n] and [m] predicted losses by ridge regression.

    The predictions of the n samples come from the other four fifths of them, so that a rule that
    is fitted on them does not trust the regression too much.

    Args:
        known: [n, d] features.
        losses: [n] what is predicted.
        others: [m, d] features of other samples.
    """
    mean, scale = known.mean(0), known.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, others = (known - mean) / scale, (others - mean) / scale
    fold = np.arange(len(x)) % N_FOLDS
    held: list[Floats] = []
    for strength in STRENGTHS:
        own = np.empty(len(x))
        for k in range(N_FOLDS):
            seen = fold != k
            own[~seen] = _ridge(x[seen], losses[seen], strength, x[~seen])
        held.append(own)
    errors = [((own - losses) ** 2).mean() for own in held]
    best = int(np.argmin(errors))
    return held[best], _ridge(x, losses, STRENGTHS[best], others)


def _ridge(x: Floats, y: Floats, strength: float, others: Floats) -> Floats:
    inner = x.T @ x + strength * np.eye(x.shape[1])
    return np.asarray(y.mean() + others @ np.linalg.solve(inner, x.T @ (y - y.mean())))


def shuffled(values: Sequence[Floats], seed: int) -> list[Floats]:
    """The same values, each array in another order."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(x) for x in values]
