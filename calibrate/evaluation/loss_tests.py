"""Tests of whether a plan loses more than its file says, over all samples and in each group.

The loss of a sample is compared with the recorded loss of its group. What it has on top is its
excess. A test asks whether the mean excess is above `TOLERANCE` or seems so by chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr

from tpcal.calibrate.evaluation.intervals import Array
from tpcal.calibrate.evaluation.paired_tests import holm

ALL = "all samples"
TOLERANCE = 0.01
"""Excess in nats that does not matter."""
LEAST = 8
"""Fewest samples that are tested: the test is not reliable for fewer (see `loss_tests`)."""
LEVEL = 0.05
"""Chance at which any test may find an excess that is none."""


@dataclass(frozen=True)
class LossTest:
    """The recorded and the measured loss of a group or of all samples, and their comparison."""

    group: str
    n: int
    """Number of samples."""
    recorded: float
    """Mean loss in nats according to the plan."""
    measured: float
    """Mean loss in nats of these samples."""
    p: float | None
    """Chance of such an excess if the true one is at most `TOLERANCE`, after Holm's correction;
    None for fewer than `LEAST` samples, which are not tested."""

    @property
    def is_worse(self) -> bool:
        """Whether the plan loses more here than it says."""
        return self.p is not None and self.p < LEVEL


def loss_tests(
    losses: Array,
    sample_groups: Sequence[str],
    recorded: Mapping[str, float],
    margins: Mapping[str, float] | None = None,
) -> tuple[LossTest, ...]:
    """The test of all samples, then those of the groups if there are several.

    A group of fewer than `LEAST` samples has figures and no test.

    Args:
        losses: [n] nats.
        sample_groups: [n] group of each sample.
        recorded: Mean loss in nats of each group, as the plan states it.
        margins: Half the width of the 95 % interval of these losses; one that is missing is 0,
            so that the recorded loss counts as exact.

    Source:
        Student 1908, one-sided, for the mean of one sample, whose variance also has that of the
        recorded loss; the adjustment is `holm`. Losses are not normal.

    Example:
        >>> import numpy as np
        >>> from tpcal.calibrate.evaluation.loss_tests import loss_tests
        >>> losses = np.array([0.1, 0.3, 0.2, 0.4] * 2 + [0.9, 1.1, 1.0, 0.8] * 2)
        >>> groups = ["count"] * 8 + ["reading"] * 8
        >>> tests = loss_tests(losses, groups, {"count": 0.25, "reading": 0.5})
        >>> [(test.group, test.is_worse) for test in tests]
        [('all samples', True), ('count', False), ('reading', True)]
    """
    own = np.array(sample_groups)
    said = np.array([recorded[group] for group in sample_groups])
    # A margin is about two standard errors of the recorded loss.
    errors = {group: (margins or {}).get(group, 0.0) / 2 for group in recorded}
    groups = sorted(set(sample_groups))
    parts = {ALL: np.ones(len(own), bool)}
    if len(groups) > 1:
        parts |= {group: own == group for group in groups}
    tests = [
        _test(name, losses[part], said[part], _variance(own[part], errors))
        for name, part in parts.items()
    ]
    adjusted = iter(holm([test.p for test in tests if test.p is not None]).tolist())
    return tuple(test if test.p is None else replace(test, p=next(adjusted)) for test in tests)


def _variance(groups: Array, errors: Mapping[str, float]) -> float:
    """Variance of the recorded mean of samples of these groups [n]."""
    names, counts = np.unique(groups, return_counts=True)
    weights = counts / len(groups)
    return sum((w * errors[name]) ** 2 for name, w in zip(names, weights, strict=True))


def _test(name: str, losses: Array, recorded: Array, variance: float) -> LossTest:
    # t = (mean excess - tolerance) / sqrt(s^2 / n + variance of the recorded mean) follows about
    # Student's distribution with n - 1 degrees of freedom if the true excess is the tolerance; p
    # is the chance of a larger t.
    n = len(losses)
    excess = (losses - recorded).astype(np.float64) - TOLERANCE
    p = None
    if n >= LEAST:
        spread = math.sqrt(excess.var(ddof=1) / n + variance)
        t = excess.mean() / spread if spread > 0 else math.copysign(math.inf, excess.mean())
        p = float(stdtr(n - 1, -t))
    return LossTest(name, n, float(recorded.mean()), float(losses.mean()), p)
