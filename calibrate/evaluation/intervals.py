"""Shares of samples, and differences of two over the same samples, with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

Array = NDArray[Any]
CONFIDENCE = 0.95
N_RESAMPLES = 2_000


@dataclass(frozen=True)
class Share:
    """A share of samples, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits: Array) -> Share | None:
    """The share of hits with its Wilson interval; None for no samples.

    Source:
        Wilson 1927, as in scipy.stats.
    """
    if not len(hits):
        return None
    result = binomtest(int(hits.sum()), len(hits))
    interval = result.proportion_ci(CONFIDENCE, method="wilson")
    return Share(float(hits.mean()), float(interval.low), float(interval.high))


def paired_difference(before: Array, after: Array, *, seed: int = 0) -> Share | None:
    """Mean of ``after - before`` over the same samples, with a paired percentile bootstrap.

    Where every sample differs alike (as a rule: not at all) the bootstrap has no spread. Then
    the interval reaches as far as the exact binomial one for a change never seen in n samples.

    Args:
        before: [n] bool.
        after: [n] bool.
        seed: Of the resampling.
    """
    if not len(before):
        return None
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
