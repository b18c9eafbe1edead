"""Shares of samples, and differences of two over the same samples, with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from tpcal.calibrate.evaluation.shares import Share

Array = NDArray[Any]
CONFIDENCE = 0.95
N_RESAMPLES = 2_000


def share(hits: Array) -> Share | None:
    """The share of hits with its Wilson interval; None if there are no samples.

    Args:
        hits: [n] bool.

    Source:
        Wilson 1927, as in scipy.stats.

    Example:
        >>> import numpy as np
        >>> from tpcal.calibrate.evaluation.intervals import share
        >>> found = share(np.array([True] * 9 + [False]))
        >>> f"{found.value:.2f} in {found.low:.2f} to {found.high:.2f}"
        '0.90 in 0.60 to 0.98'
    """
    if not len(hits):
        return None
    # The ends are the shares p for which the observed share lies z standard errors of p away:
    # |share - p| = z * sqrt(p (1 - p) / n), with z = 1.96. Both stay within [0, 1].
    result = binomtest(int(hits.sum()), len(hits))
    interval = result.proportion_ci(CONFIDENCE, method="wilson")
    return Share(float(hits.mean()), float(interval.low), float(interval.high))


def paired_difference(before: Array, after: Array, *, seed: int = 0) -> Share | None:
    """Mean of ``after - before`` over the same samples, with a paired percentile bootstrap.

    Returns None if there are no samples. If every sample differs alike (usually: not at all), the
    bootstrap has no spread. The interval then extends by the upper end of the exact binomial
    interval of an event that was never seen in n samples.

    Args:
        before: [n] bool.
        after: [n] bool.
        seed: Seed of the resampling.
    """
    if not len(before):
        return None
    # change[i] is 1 for a sample that is gained, -1 for one that is lost, else 0. The bootstrap
    # draws n samples with replacement `N_RESAMPLES` times, so that each draw keeps the two answers
    # of a sample together; the interval spans the middle 95 % of the draws' means.
    change = after.astype(float) - before.astype(float)
    value = float(change.mean())
    if np.ptp(change) == 0:
        unseen = binomtest(0, len(change)).proportion_ci(CONFIDENCE, method="exact").high
        return Share(value, max(value - unseen, -1.0), min(value + unseen, 1.0))
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
    return Share(value, float(interval.low), float(interval.high))
