"""Tests of whether two ways to answer the same samples differ, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tpcal.calibrate.evaluation.intervals import Array, Share, paired_difference


@dataclass(frozen=True, eq=False)
class Pair:
    """Two ways to answer, and on which samples each was right, or agreed with the unpruned model.

    Arrays are [n] bool, over the same samples.
    """

    one: str
    other: str
    measure: str
    """``accuracy`` or ``agreement``."""
    hits: Array
    other_hits: Array


@dataclass(frozen=True)
class Test:
    """What two ways to answer differ by, and how likely chance alone makes such a difference."""

    one: str
    other: str
    measure: str
    difference: Share
    """Of ``one`` minus ``other``."""
    p: float
    """Two-sided, of no difference."""
    p_adjusted: float
    """The same, so that one false finding among all tests is as rare as in a single one."""
    n_changed: int
    """Samples that only one of both got; the test rests on these."""

    __test__ = False  # pytest would take it for a class of tests


def paired_tests(pairs: Sequence[Pair]) -> tuple[Test, ...]:
    """McNemar's exact test of every pair, adjusted by Holm's method for all of them.

    Args:
        pairs: Of one sample or more.

    Source:
        McNemar 1947, in its exact form: a binomial test of the samples that only one of both got.
        Holm 1979, as in statsmodels.
    """
    if not pairs:
        return ()
    from statsmodels.stats.multitest import multipletests  # takes a second

    p_values = [_p_value(pair) for pair in pairs]
    adjusted = multipletests(p_values, method="holm")[1]
    return tuple(
        _test(pair, p, float(fit)) for pair, p, fit in zip(pairs, p_values, adjusted, strict=True)
    )


def _p_value(pair: Pair) -> float:
    n_changed = int(np.sum(pair.hits != pair.other_hits))
    n_won = int(np.sum(pair.hits & ~pair.other_hits))
    return float(binomtest(n_won, n_changed).pvalue) if n_changed else 1.0


def _test(pair: Pair, p: float, p_adjusted: float) -> Test:
    difference = paired_difference(pair.other_hits, pair.hits)
    assert difference is not None, "pairs have samples"
    n_changed = int(np.sum(pair.hits != pair.other_hits))
    return Test(pair.one, pair.other, pair.measure, difference, p, p_adjusted, n_changed)
