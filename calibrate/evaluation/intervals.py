"""Mean scores of samples, and differences of two over the same samples, with their intervals.

A score is in [0, 1]. Where every score is 0 or 1, the mean score is the share of hits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binomtest, bootstrap

from tpcal.calibrate.evaluation.shares import Share

Array = NDArray[Any]
CONFIDENCE = 0.95
N_RESAMPLES = 2_000
FEW = 10
"""Changed samples from which on a bootstrap describes them."""


def is_binary(scores: Array) -> bool:
    """Whether every score is 0 or 1."""
    return scores.dtype == bool or bool(np.isin(scores, (0.0, 1.0)).all())


def share(scores: Array) -> Share | None:
    """The mean score with its Wilson interval; None if there are no samples.

    For scores between 0 and 1 the interval is too wide rather than too narrow, because their
    variance is at most that of hits and misses with the same mean m, m (1 - m).

    Args:
        scores: [n] in [0, 1], or bool.

    Source:
        Wilson 1927, as in scipy.stats; Bhatia and Davis 2000 for the variance of bounded scores.

    Example:
        >>> import numpy as np
        >>> from tpcal.calibrate.evaluation.intervals import share
        >>> found = share(np.array([True] * 9 + [False]))
        >>> f"{found.value:.2f} in {found.low:.2f} to {found.high:.2f}"
        '0.90 in 0.60 to 0.98'
    """
    if not len(scores):
        return None
    # The ends are the means p for which the observed mean lies z standard errors of p away:
    # |mean - p| = z * sqrt(p (1 - p) / n), with z = 1.96. Both stay within [0, 1].
    mean = float(scores.mean())
    if not is_binary(scores):
        return Share(mean, *_wilson(mean, len(scores)))
    result = binomtest(int(scores.sum()), len(scores))
    interval = result.proportion_ci(CONFIDENCE, method="wilson")
    return Share(mean, float(interval.low), float(interval.high))


def _wilson(mean: float, n: int) -> tuple[float, float]:
    z = float(ndtri((1 + CONFIDENCE) / 2))
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def paired_difference(before: Array, after: Array, *, seed: int = 0) -> Share | None:
    """Mean of ``after - before`` over the same samples, with a paired percentile bootstrap.

    Returns None if there are no samples. A bootstrap of few changed samples is too narrow, and of
    none it has no spread. Where fewer than `FEW` samples lose, the lower end is therefore as far
    away at least as the exact binomial interval of their number reaches above their share; the
    upper end likewise where few gain.

    Args:
        before: [n] scores in [0, 1], or bool.
        after: [n] scores in [0, 1], or bool.
        seed: Seed of the resampling.
    """
    if not len(before):
        return None
    # change[i] is the gain of a sample in [-1, 1]: 1 for an answer that becomes right, -1 for one
    # that becomes wrong, else 0; something between for scores between 0 and 1. The bootstrap
    # draws n samples with replacement `N_RESAMPLES` times, so that each draw keeps the two answers
    # of a sample together; the interval spans the middle 95 % of the draws' means.
    change = after.astype(float) - before.astype(float)
    value = float(change.mean())
    if np.ptp(change) == 0:
        unseen = _above_share(0, len(change))
        return Share(value, max(value - unseen, -1.0), min(value + unseen, 1.0))
    n_lost, n_gained = int((change < 0).sum()), int((change > 0).sum())
    least = value - (_above_share(n_lost, len(change)) if n_lost < FEW else 0.0)
    most = value + (_above_share(n_gained, len(change)) if n_gained < FEW else 0.0)
    interval = bootstrap(
        (change,),
        np.mean,
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=200,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = min(float(interval.low), least), max(float(interval.high), most)
    return Share(value, max(low, -1.0), min(high, 1.0))


def _above_share(n_events: int, n: int) -> float:
    """How far the exact binomial interval of ``n_events`` in ``n`` reaches above their share."""
    high = binomtest(n_events, n).proportion_ci(CONFIDENCE, method="exact").high
    return float(high) - n_events / n
