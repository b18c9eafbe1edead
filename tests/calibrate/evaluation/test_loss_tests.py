from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from tpcal.calibrate.evaluation.loss_tests import ALL, LEAST, TOLERANCE, loss_tests

GROUPS = ["count"] * 20 + ["reading"] * 20
RECORDED = {"count": 0.3, "reading": 0.5}
LOSSES = np.random.default_rng(0).exponential(1.0, 40) * np.repeat([0.3, 0.5], 20)


def test_p_values_are_student_s_after_holm() -> None:
    every, count, reading = loss_tests(LOSSES, GROUPS, RECORDED)
    excess = LOSSES - np.repeat([0.3, 0.5], 20)
    parts = [excess, excess[:20], excess[20:]]
    p = [ttest_1samp(part, TOLERANCE, alternative="greater").pvalue for part in parts]
    smallest = (every, count, reading)[int(np.argmin(p))]
    assert smallest.p == pytest.approx(min(1, 3 * min(p)))
    assert (every.group, every.n, every.recorded) == (ALL, 40, pytest.approx(0.4))
    assert (count.group, count.n, count.measured) == ("count", 20, LOSSES[:20].mean())
    assert not any(test.is_worse for test in (every, count, reading))


def test_one_group_that_got_worse_is_found() -> None:
    tests = loss_tests(LOSSES + np.repeat([0.0, 1.0], 20), GROUPS, RECORDED)
    assert [test.group for test in tests if test.is_worse] == [ALL, "reading"]


def test_what_is_lost_less_than_stated_is_no_fault() -> None:
    tests = loss_tests(np.zeros(40), GROUPS, RECORDED)
    assert [test.p for test in tests] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("excess", "is_worse"), [(0.0, False), (0.005, False), (0.05, True)])
def test_samples_that_are_all_alike_are_judged_by_their_mean(
    excess: float, is_worse: bool
) -> None:
    (every,) = loss_tests(np.full(20, 0.3 + excess), ["count"] * 20, {"count": 0.3})
    assert every.is_worse == is_worse


def test_too_few_samples_of_a_group_are_not_tested() -> None:
    few = ["count"] * (LEAST - 1) + ["reading"] * LEAST
    every, count, reading = loss_tests(np.full(len(few), 2.0), few, RECORDED)
    assert count.p is None
    assert not count.is_worse
    assert every.is_worse
    assert reading.is_worse


def test_a_recorded_loss_that_is_itself_uncertain_proves_less() -> None:
    """The squares of the standard error of the samples and of half the margin are added."""
    worse = LOSSES[20:] + 0.4
    excess = worse - 0.5 - TOLERANCE
    for margin in (0.0, 0.3):
        (every,) = loss_tests(worse, GROUPS[20:], RECORDED, {"reading": margin})
        t = excess.mean() / np.sqrt(excess.var(ddof=1) / 20 + (margin / 2) ** 2)
        assert every.p == pytest.approx(student.sf(t, 19))
    # Over all samples, each group's error counts by its share; here no group is tested itself.
    some, groups = LOSSES[:14] + 1, ["count"] * 7 + ["reading"] * 7
    every, *_ = loss_tests(some, groups, RECORDED, {"count": 0.2, "reading": 0.6})
    excess = some - np.repeat([0.3, 0.5], 7) - TOLERANCE
    t = excess.mean() / np.sqrt(excess.var(ddof=1) / 14 + 0.05**2 + 0.15**2)
    assert every.p == pytest.approx(student.sf(t, 13))
