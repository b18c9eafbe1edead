"""The interval of the changed share holds at all times, and the test of a limit rarely errs."""

from __future__ import annotations

import random
from itertools import count

import numpy as np
import pytest

from tpcal.monitor.changed_share import CHANGED, SAME, limit_test, share_interval


def test_the_interval_is_the_set_of_shares_that_the_evidence_does_not_reject():
    lower, upper = share_interval(1, 2, 0.9)
    for share in (lower, upper):  # E(p) = B(3/2, 3/2) / (pi p (1 - p)) and B(3/2, 3/2) = pi / 8
        assert 1 / (8 * share * (1 - share)) == pytest.approx(10, rel=1e-3)
    assert lower + upper == pytest.approx(1, abs=1e-4)
    assert share_interval(0, 0, 0.95) == (0, 1)
    assert share_interval(0, 9, 0.95)[0] == 0
    assert share_interval(9, 9, 0.95)[1] == 1


def test_more_answers_and_less_confidence_make_it_narrower():
    widths = [
        upper - lower
        for n in (20, 200, 2000)
        for lower, upper in [share_interval(n // 20, n, 0.95)]
    ]
    assert sorted(widths, reverse=True) == widths
    assert share_interval(5, 100, 0.5)[1] < share_interval(5, 100, 0.95)[1]


def inside(share: float, n: int, confidence: float) -> tuple[int, int]:
    """The smallest and largest number of changes of n answers whose interval has the share."""
    low = next(x for x in count() if share_interval(x, n, confidence)[1] >= share)
    high = next(x for x in count(low) if x == n or share_interval(x + 1, n, confidence)[0] > share)
    return low, high


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_of_4000_sequences_few_ever_leave_their_interval(share):
    lengths = [*range(1, 41), *range(45, 200, 5), *range(220, 500, 40)]
    confidence = 0.8
    low, high = np.array([inside(share, n, confidence) for n in lengths]).T
    draws = np.random.default_rng(0).random((4000, lengths[-1])) < share
    changed = draws.cumsum(axis=1)[:, np.array(lengths) - 1]
    missed = ((changed < low) | (changed > high)).any(axis=1).mean()
    assert 0 < missed <= 1 - confidence


def test_looking_at_an_ordinary_interval_all_the_time_would_miss_the_share_more_often():
    # The exact interval of one look, 80 %, of a share of 0.1: what the sequence is there for.
    from scipy.stats import binom

    lengths = np.arange(1, 400)
    low, high = binom.ppf(0.1, lengths, 0.1), binom.ppf(0.9, lengths, 0.1)
    changed = (np.random.default_rng(0).random((4000, 399)) < 0.1).cumsum(axis=1)
    assert ((changed < low) | (changed > high)).any(axis=1).mean() > 0.5


def first_alarm(chances, limit: float, level: float, seed: int) -> int | None:
    """Number of the answer after which the limit is first rejected; None if it never is."""
    drawn, test = random.Random(seed), limit_test(limit, level)
    outcomes = (CHANGED if drawn.random() < chance else SAME for chance in chances)
    return next((i for i, one in enumerate(outcomes, start=1) if test.add(one)), None)


def test_a_limit_that_is_kept_is_rarely_rejected():
    found = [first_alarm([0.1] * 150, 0.1, 0.2, seed) for seed in range(100)]
    assert sum(one is not None for one in found) <= 20


def test_a_share_that_rises_late_is_found_soon():
    assert all(first_alarm([0.5] * 60, 0.05, 0.05, seed) for seed in range(5))
    for seed in range(5):
        at = first_alarm([0.01] * 400 + [0.5] * 80, 0.05, 0.05, seed)
        assert at is not None
        assert 400 < at <= 480


def test_a_rejection_is_told_once():
    test = limit_test(0.05, 0.05)
    told = [test.add(CHANGED) for _ in range(40)]
    assert sum(told) == 1
    assert test.is_rejected
