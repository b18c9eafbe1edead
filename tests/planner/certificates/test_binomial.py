"""Certificates: exact values by hand, and that promises hold as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tpcal.planner.certificates.binomial import (
    Changed,
    bound,
    certificate,
    first_failure,
    last_promised,
    p_value,
    samples_needed,
)
from tpcal.plans.errors import GuardrailError, UsageError

N_RESAMPLES = 2000


def test_without_a_change_the_rule_of_three():
    # (1 - p)^n = 0.05 at p = 1 - 0.05^(1/n)
    assert bound(Changed(0, 59), 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert p_value(Changed(0, 59), 0.05) == pytest.approx(0.95**59)
    assert samples_needed(0.05, 0.95) == 59
    assert p_value(Changed(0, 58), 0.05) > 0.05 >= p_value(Changed(0, 59), 0.05)


def test_one_change_by_hand():
    n, p = 100, 0.03
    assert p_value(Changed(1, n), p) == pytest.approx((1 - p) ** n + n * p * (1 - p) ** (n - 1))
    assert bound(Changed(n, n), 0.95) == 1.0


def test_the_bound_is_where_the_test_turns():
    for n_changed, n in [(0, 30), (3, 90), (17, 400)]:
        limit = bound(Changed(n_changed, n), 0.9)
        assert p_value(Changed(n_changed, n), limit) == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.04])
def test_so_many_samples_as_it_says_are_enough(share):
    n = samples_needed(0.05, 0.95, share)
    assert certificate({"a": Changed(round(share * n), n)}, 0.05, 0.95).bound <= 0.05
    assert samples_needed(0.05, 0.95, 0.05) is None


def test_too_few_samples_say_how_many_are_needed():
    with pytest.raises(GuardrailError, match=r"0 of 40 changed.*about 59 samples are needed"):
        certificate({"a": Changed(0, 40)}, 0.05, 0.95)
    with pytest.raises(GuardrailError, match="More samples will not help"):
        certificate({"a": Changed(10, 100)}, 0.05, 0.95)


def test_every_group_must_pass_where_every_group_is_promised():
    groups = {"reading": Changed(12, 100), "yes/no": Changed(0, 900)}
    assert certificate(groups, 0.05, 0.95).n == 1000
    with pytest.raises(GuardrailError, match="of reading must change"):
        certificate(groups, 0.05, 0.95, each_group=True)
    made = certificate({"a": Changed(0, 100), "b": Changed(1, 100)}, 0.05, 0.95, each_group=True)
    assert (made.n_changed, made.of) == (1, "each group")


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, math.nan])
def test_shares_are_between_none_and_all(value):
    with pytest.raises(UsageError, match="max_flips must be"):
        certificate({"a": Changed(0, 100)}, value, 0.95)
    with pytest.raises(UsageError, match="confidence must be"):
        certificate({"a": Changed(0, 100)}, 0.05, value)
    with pytest.raises(UsageError, match="must have samples"):
        certificate({}, 0.05, 0.95)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_bounds_hold_as_often_as_promised(share, confidence):
    rng = np.random.default_rng(0)
    counts = rng.binomial(300, share, N_RESAMPLES)
    held = np.mean([share <= bound(Changed(int(k), 300), confidence) for k in counts])
    slack = 3 * math.sqrt(confidence * (1 - confidence) / N_RESAMPLES)
    assert held >= confidence - slack


@pytest.mark.parametrize("each_group", [False, True])
def test_false_promises_are_as_rare_as_promised(each_group):
    """The true share is a hair too large, in one group of three."""
    rng = np.random.default_rng(1)
    shares = (0.0501, 0.02, 0.001) if each_group else (0.0501, 0.0501, 0.0501)
    false = 0
    for _ in range(N_RESAMPLES):
        groups = {str(i): Changed(int(rng.binomial(150, s)), 150) for i, s in enumerate(shares)}
        try:
            certificate(groups, 0.05, 0.95, each_group=each_group)
            false += 1
        except GuardrailError:
            pass
    assert false / N_RESAMPLES <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / N_RESAMPLES)
    assert false  # it is tried near its limit


def test_of_a_row_of_plans_no_false_one_passes_more_often_than_promised():
    """The same samples test ten plans, of which the last five change too much."""
    rng = np.random.default_rng(2)
    shares = np.array([0.001, 0.005, 0.01, 0.02, 0.03, 0.0501, 0.06, 0.07, 0.08, 0.09])
    false = passed = 0
    for _ in range(N_RESAMPLES):
        hardness = rng.random(400)  # a sample that is hard is hard under every plan
        changed = [[Changed(int((hardness < share).sum()), 400)] for share in shares]
        n = first_failure(changed, 0.05, 0.95)
        false += n > 5
        passed += n
    assert false / N_RESAMPLES <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / N_RESAMPLES)
    assert passed / N_RESAMPLES > 3


@pytest.mark.parametrize("each_group", [False, True])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_plan_a_row_ends_with_breaks_its_promise_as_rarely_as_promised(confidence, each_group):
    """From the dearest plan to the cheapest; from the fifth on they change too much."""
    rng = np.random.default_rng(3)
    shares = np.array([0.002, 0.01, 0.02, 0.03, 0.0501, 0.0502, 0.055, 0.06, 0.08, 0.2])
    n, n_groups, n_resamples = 300, 3, 1000
    group = np.arange(n) % n_groups
    # Every group breaks the promise alike, or, where each is promised, a single one does.
    scale = np.where(group == 0, 1.0, 0.3) if each_group else np.ones(n)
    false = found = 0
    for _ in range(n_resamples):
        hardness = rng.random(n)  # a sample that is hard is hard under every plan
        changed = [hardness < share * scale for share in shares]
        row = [{str(g): _changed(one[group == g]) for g in range(n_groups)} for one in changed]
        try:
            at, _ = last_promised(row, 0.05, confidence, each_group=each_group)
        except GuardrailError:
            continue
        found, false = found + 1, false + (shares[at] > 0.05)
    level = 1 - confidence
    assert false / n_resamples <= level + 3 * math.sqrt(level * confidence / n_resamples)
    assert false  # it is tried near its limit
    assert found / n_resamples > (0.3 if each_group else 0.9)


def test_what_a_row_promises_is_the_limit_and_no_tighter_bound():
    """A tighter one would hold for a plan named beforehand, not for the last that passed."""
    rng = np.random.default_rng(5)
    shares = np.array([0.02, 0.03, 0.04, 0.045, 0.049])  # all keep the promise
    tighter = false = found = 0
    for _ in range(2000):
        row = [{"a": Changed(int(k), 700)} for k in rng.binomial(700, shares)]
        try:
            at, proven = last_promised(row, 0.05, 0.95)
        except GuardrailError:
            continue
        found += 1
        false += proven.bound < shares[at]
        tighter += bound(Changed(proven.n_changed, 700), 0.95) < shares[at]
        assert proven.bound == proven.max_flips == 0.05
    assert found
    assert false == 0
    assert tighter / 2000 > 0.055  # what an earlier version wrote down


def _changed(changed: np.ndarray) -> Changed:
    return Changed(int(changed.sum()), len(changed))


def test_no_plan_is_asked_for_after_the_first_that_fails():
    asked = []

    def row():
        for n_changed in (0, 1, 20, 0):
            asked.append(n_changed)
            yield {"a": Changed(n_changed, 100)}

    at, proven = last_promised(row(), 0.05, 0.95)
    assert (at, proven.n_changed, proven.n_plans, asked) == (1, 1, 2, [0, 1, 20])
    with pytest.raises(GuardrailError, match="20 of 100 changed"):
        last_promised([{"a": Changed(20, 100)}, {"a": Changed(0, 100)}], 0.05, 0.95)
