"""The share of changed answers: an interval that holds at all times, and a test of a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tpcal.monitor.sequential_test import SequentialTest

RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0, 64.0)
"""Odds of a change, as multiples of the odds at the limit, that the test bets on."""
SAME, CHANGED = 0, 1
_PRECISION = 1e-6


def share_interval(n_changed: int, n: int, confidence: float) -> tuple[float, float]:
    """Lower and upper bound of the true share of changed answers, given n answers so far.

    The bounds may be computed after every answer: the chance that the true share is ever outside
    of them is at most 1 - confidence.

    Args:
        n_changed: Number of changed answers, x.
        n: Number of answers.
        confidence: Share of such sequences of intervals that must hold, in (0, 1).

    Source:
        Robbins 1970, the mixture method; Waudby-Smith and Ramdas 2024, arXiv 2010.09686, on
        confidence sequences from bets. The prior is Beta(1/2, 1/2).

    Example:
        >>> lower, upper = share_interval(n_changed=5, n=100, confidence=0.95)
        >>> round(lower, 3), round(upper, 3)
        (0.007, 0.156)
    """
    # If p is the true share, this is a martingale that starts at 1, so it ever reaches
    # 1 / (1 - confidence) with a chance of at most 1 - confidence (Ville's inequality):
    #     E(p) = B(x + 1/2, n - x + 1/2) / (B(1/2, 1/2) p^x (1 - p)^(n - x)).
    # The interval holds the shares p whose E(p) is smaller. E falls up to x / n and then rises.
    mixture = _log_beta(n_changed + 0.5, n - n_changed + 0.5) - _log_beta(0.5, 0.5)

    def is_inside(share: float) -> bool:
        likelihood = _log_likelihood(n_changed, n, share)
        return mixture - likelihood < -math.log1p(-confidence)

    observed = n_changed / n if n else 0.5
    lower = 0.0 if n_changed == 0 else _border(observed, 0.0, is_inside)
    return lower, 1.0 if n_changed == n else _border(observed, 1.0, is_inside)


def limit_test(limit: float, level: float) -> SequentialTest:
    """A test of the claim that each answer changes with a chance of at most ``limit``.

    Its outcomes are `SAME` and `CHANGED`. A share above the limit by less than a twentieth of it
    may never be found.

    Args:
        limit: Largest share of changed answers, in (0, 1).
        level: Largest chance of ever rejecting the claim if it is true.
    """
    odds = limit / (1 - limit)
    bets = [odds * ratio / (1 + odds * ratio) for ratio in RATIOS]
    gains = [(math.log(q / limit), math.log((1 - q) / (1 - limit))) for q in bets]

    def log_evidence(counts: Sequence[int]) -> float:
        # For q > limit, (q / limit)^x ((1 - q) / (1 - limit))^(n - x) is expected to shrink or to
        # stay while answers change with a chance of at most the limit. So is the mean over all q.
        x, n = counts[CHANGED], sum(counts)
        logs = [x * changed + (n - x) * same for changed, same in gains]
        largest = max(logs)
        return largest + math.log(sum(math.exp(log - largest) for log in logs) / len(logs))

    return SequentialTest(log_evidence, 2, level)


def _log_likelihood(x: int, n: int, share: float) -> float:
    return x * math.log(share) + (n - x) * math.log1p(-share)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _border(inside: float, outside: float, is_inside: Callable[[float], bool]) -> float:
    """A share at the border of the interval, at most `_PRECISION` outside of it."""
    while abs(outside - inside) > _PRECISION:
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return outside
