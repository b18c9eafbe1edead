from __future__ import annotations

import math

import pytest

from tpcal.planner.search.loss_limits import LossLimits
from tpcal.plans.errors import GuardrailError, UsageError

LOSSES = {"reading": 0.3, "colour": 0.01}
FLIPS = {"reading": 0.2, "colour": 0.0}
SIZES = {"reading": 10, "colour": 30}


def test_a_loss_is_the_worst_groups_however_fine_the_mean() -> None:
    assert LossLimits(max_loss=0.2).times(LOSSES, FLIPS, SIZES) == pytest.approx(1.5)
    with pytest.raises(
        GuardrailError, match=r"at most 0\.2 nats; got 0\.3 \(measured\) on readin"
    ):
        LossLimits(max_loss=0.2).guard(LOSSES, FLIPS, SIZES, "measured")
    LossLimits(max_loss=0.3).guard(LOSSES, FLIPS, SIZES, "measured")


def test_changed_answers_are_counted_over_all_samples_or_in_every_group() -> None:
    assert LossLimits(max_flips=0.1).times(LOSSES, FLIPS, SIZES) == pytest.approx(0.5)  # 2 of 40
    each = LossLimits(max_flips=0.1, each_group=True)
    assert each.times(LOSSES, FLIPS, SIZES) == pytest.approx(2)
    LossLimits(max_flips=0.1).guard(LOSSES, FLIPS, SIZES, "predicted")
    with pytest.raises(GuardrailError, match=r"got 0\.2 \(predicted\) in reading"):
        each.guard(LOSSES, FLIPS, SIZES, "predicted")
    with pytest.raises(GuardrailError, match=r"got 0\.05 .* over all samples, most in reading"):
        LossLimits(max_flips=0.04).guard(LOSSES, FLIPS, SIZES, "measured")


def test_of_two_limits_the_tighter_one_counts() -> None:
    both = LossLimits(max_loss=0.15, max_flips=0.01)
    assert both.times(LOSSES, FLIPS, SIZES) == pytest.approx(5)
    assert both.times({"a": 0.3}, {"a": 0.001}, {"a": 4}) == pytest.approx(2)


def test_a_limit_of_zero_lets_nothing_through_but_nothing() -> None:
    none = LossLimits(max_loss=0)
    assert none.nothing
    assert none.times({"a": 0.0}, {"a": 0.0}, {"a": 1}) == 0
    assert none.times({"a": 1e-9}, {"a": 0.0}, {"a": 1}) == math.inf


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, "must be given; got neither"),
        ({"max_loss": -1.0}, "max_loss must be 0 or more"),
        ({"max_loss": math.nan}, "max_loss must be 0 or more"),
        ({"max_flips": 1.5}, r"max_flips must be in \[0, 1\]"),
    ],
)
def test_limits_are_numbers(limits: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        LossLimits(**limits).check()
