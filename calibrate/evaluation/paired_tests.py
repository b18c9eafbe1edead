"""Tests of whether two variants answer the same samples differently, corrected for their number.

Every test compares two variants on the same samples, so each sample falls into one of four cells:
both are right, both are wrong, or only one of the two is right. Only the last two cells tell the
variants apart. McNemar's exact test asks how likely a fair coin splits them at least as unevenly.

A metric may also give scores between 0 and 1. Then the sign-flip test asks how likely a fair coin
for each sample, which decides whose score is whose, gives at least as large a difference. For
scores of 0 and 1 both are the same test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from tpcal.calibrate.evaluation.intervals import Array, is_binary, paired_difference
from tpcal.calibrate.evaluation.shares import Test

MOST_EXACT = 16
"""Largest number of samples with different scores for which all signs are counted."""
N_FLIPS = 99_999
"""Number of random signs that are drawn for more samples than `MOST_EXACT`."""
_ROUNDING = 1e-9
"""By this much, equal differences may differ."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two variants, and their scores, or the samples on which each agreed with the unpruned model.

    Arrays are [n] scores in [0, 1], or bool, over the same samples.
    """

    one: str
    other: str
    measure: str
    """``accuracy`` or ``agreement``."""
    hits: Array
    other_hits: Array


def paired_tests(pairs: Sequence[Pair]) -> tuple[Test, ...]:
    """McNemar's exact test of every pair, adjusted by Holm's method for all of them.

    Pairs with a score between 0 and 1 are tested by the sign-flip test instead.

    Args:
        pairs: Pairs with at least one sample each.

    Source:
        McNemar 1947, in its exact form: a binomial test of the samples that only one of the two
        variants got right. Fisher 1935 (The Design of Experiments, section 21) for the sign-flip
        test; Phipson and Smyth 2010 for its p-value by random signs, (b + 1) / (m + 1). The
        adjustment is `holm`.

    Example:
        >>> import numpy as np
        >>> from tpcal.calibrate.evaluation.paired_tests import Pair, paired_tests
        >>> one, other = np.array([True] * 9 + [False]), np.array([True] * 3 + [False] * 7)
        >>> (test,) = paired_tests([Pair("plan", "random", "accuracy", one, other)])
        >>> test.n_changed, test.p  # six samples, all won by one: 2 * (1/2)**6
        (6, 0.03125)
    """
    p_values = [_p_value(pair) for pair in pairs]
    adjusted = holm(p_values)
    return tuple(
        _test(pair, p, float(fit)) for pair, p, fit in zip(pairs, p_values, adjusted, strict=True)
    )


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """[m] the p-values of m tests, adjusted so that a false finding is rare among all of them.

    The chance of one or more false findings at level a is at most a, whatever the tests have in
    common.

    Args:
        p_values: [m] p-values, in any order.

    Source:
        Holm 1979, section 3.

    Example:
        >>> from tpcal.calibrate.evaluation.paired_tests import holm
        >>> holm([0.5, 0.01, 0.02]).tolist()
        [0.5, 0.03, 0.04]
    """
    # Sort the p-values p(1) <= … <= p(m). The i-th becomes the largest of (m - j + 1) * p(j) over
    # j <= i, at most 1.
    p = np.asarray(p_values, np.float64)
    rising = np.argsort(p, kind="stable")
    largest = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[rising])
    adjusted = np.empty_like(p)
    adjusted[rising] = np.minimum(largest, 1.0)
    return adjusted


def _p_value(pair: Pair) -> float:
    if not (is_binary(pair.hits) and is_binary(pair.other_hits)):
        return sign_flip_p(pair.hits.astype(float) - pair.other_hits)
    # p = P(a fair coin tossed n_changed times is at least as far from n_changed / 2 as n_won).
    n_changed = int(np.sum(pair.hits != pair.other_hits))
    n_won = int(np.sum(pair.hits > pair.other_hits))
    return float(binomtest(n_won, n_changed).pvalue) if n_changed else 1.0


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """The two-sided p-value of the hypothesis that the sign of every difference is a fair coin's.

    Args:
        differences: [n] differences of paired scores. Those that are 0 tell nothing.
        seed: Seed of the random signs.

    Example:
        >>> import numpy as np
        >>> from tpcal.calibrate.evaluation.paired_tests import sign_flip_p
        >>> sign_flip_p(np.array([0.5, 0.3, 0.2, 0.0]))  # 2 of the 8 signs give 1.0 or more
        0.25
    """
    # Under the hypothesis, |sum of +-d_i| is as likely for any signs. p is the share of signs with
    # at least the observed sum: of all signs, or of the observed ones and N_FLIPS random ones.
    d = np.abs(differences[differences != 0])
    observed = abs(float(differences.sum())) - _ROUNDING
    if len(d) <= MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)
        return float(np.mean(np.abs(signs @ d) >= observed))
    # The sum of n independent signs times d: one draw of all signs at a time would need n * m
    # numbers, so that they are drawn sample by sample.
    rng = np.random.default_rng(seed)
    sums = np.zeros(N_FLIPS)
    for size in d:
        sums += np.where(rng.random(N_FLIPS, np.float32) < 0.5, size, -size)
    return (1 + int(np.sum(np.abs(sums) >= observed))) / (N_FLIPS + 1)


def _test(pair: Pair, p: float, p_adjusted: float) -> Test:
    difference = paired_difference(pair.other_hits, pair.hits)
    assert difference is not None, "pairs have samples"
    n_changed = int(np.sum(pair.hits != pair.other_hits))
    is_graded = not (is_binary(pair.hits) and is_binary(pair.other_hits))
    return Test(
        pair.one, pair.other, pair.measure, difference, p, p_adjusted, n_changed, is_graded
    )
