"""Intervals and tests of paired comparisons: rows or, within groups, questions are resampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

TAILS = (0.025, 0.975)
NOISE = 0.05
"""Tests with a smaller corrected p-value are beyond noise."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def show(self, form: str = ".3f") -> str:
        """As in a table."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def verdict(self) -> str:
        """A difference in words: `better by 0.034 [0.023, 0.045]`, or `worse by`, or `equal`."""
        if abs(self.value) < 0.0005:
            return f"equal, {self.show()}"
        if self.value > 0:
            return f"better by {self.show()}"
        return f"worse by {Interval(-self.value, -self.high, -self.low).show()}"


def resampled(
    statistic: Callable[..., float], columns: Sequence[ArrayLike], n_resamples: int, seed: int = 0
) -> tuple[float, Floats]:
    """A figure of rows, and [n_resamples] what it is on rows drawn with replacement."""
    drawn = stats.bootstrap(
        columns,
        statistic,
        n_resamples=n_resamples,
        paired=True,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    return float(statistic(*columns)), drawn


def within_groups(
    statistic: Callable[[Sequence[NDArray[np.int64]]], Floats],
    groups: NDArray[Any],
    n_resamples: int,
    seed: int = 0,
) -> tuple[float, Floats]:
    """A figure of samples, and [n_resamples] the same, each group's drawn by themselves.

    Args:
        statistic: From the sample numbers of every group, [..., n of the group] each, to [...].
        groups: [n] the group of each sample.
    """
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    drawn = stats.bootstrap(
        members,
        lambda *samples, axis: statistic(samples),
        n_resamples=n_resamples,
        vectorized=True,
        method="percentile",
        batch=100,
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    return float(statistic(members)), drawn


def interval(figure: tuple[float, Floats]) -> Interval:
    """A figure with the interval that holds 95 % of its resamples."""
    value, drawn = figure
    low, high = np.quantile(drawn, TAILS)
    return Interval(value, float(low), float(high))


def overall_difference(
    one: Floats, other: Floats, groups: NDArray[Any], n_resamples: int
) -> Interval:
    """Mean of ``one - other`` over the same questions."""
    change = one - other

    def mean(drawn: Sequence[NDArray[np.int64]]) -> Floats:
        return np.concatenate([change[at] for at in drawn], axis=-1).mean(axis=-1)

    return interval(within_groups(mean, groups, n_resamples))


def worst_difference(
    one: Floats, other: Floats, groups: NDArray[Any], n_resamples: int
) -> Interval:
    """The smallest group mean of ``one`` minus that of ``other``, over the same questions.

    Args:
        one: [R, n] scores of R plans, each of which has a worst group of its own; their smallest
            means are averaged.
        other: [S, n] likewise.
        groups: [n] the group of each question.
        n_resamples: Number of resamples.
    """

    def worst(scores: Floats, drawn: Sequence[NDArray[np.int64]]) -> Floats:
        means = np.min([scores[:, at].mean(axis=-1) for at in drawn], axis=0)  # [R, ...]
        return np.asarray(means.mean(axis=0))

    return interval(
        within_groups(lambda drawn: worst(one, drawn) - worst(other, drawn), groups, n_resamples)
    )


def p_paired(one: Floats, other: Floats) -> float:
    """Two-sided p-value of no difference over the same questions (t-test of the differences)."""
    if np.array_equal(one, other):
        return 1.0
    return float(stats.ttest_rel(one, other).pvalue)
