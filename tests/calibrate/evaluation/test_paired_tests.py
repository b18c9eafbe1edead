from __future__ import annotations

import numpy as np
import pytest

from tpcal.calibrate.evaluation.paired_tests import Pair, holm, paired_tests


def _pair(one: list[int], other: list[int], name: str = "a") -> Pair:
    return Pair(name, "b", "accuracy", np.array(one, bool), np.array(other, bool))


def test_mcnemar_by_hand() -> None:
    # Six samples only one gets, one only the other: 2 * (C(7, 0) + C(7, 1)) / 2^7.
    (found,) = paired_tests([_pair([1] * 6 + [0] + [1, 0], [0] * 6 + [1] + [1, 0])])
    assert found.p == pytest.approx(2 * (1 + 7) / 128)
    assert found.p_adjusted == found.p
    assert found.n_changed == 7
    assert found.difference.value == pytest.approx(5 / 9)


def test_samples_that_both_get_or_miss_tell_nothing() -> None:
    (same,) = paired_tests([_pair([1, 0, 1], [1, 0, 1])])
    assert (same.p, same.n_changed, same.difference.value) == (1.0, 0, 0.0)


def test_holm_by_hand() -> None:
    # n samples that only one gets: p = 2 / 2^n, so 1/16, 1/4 and 1/8; times 3, 1 and 2, in order.
    found = paired_tests([_pair([1] * n, [0] * n) for n in (5, 3, 4)])
    assert [test.p for test in found] == pytest.approx([1 / 16, 1 / 4, 1 / 8])
    assert [test.p_adjusted for test in found] == pytest.approx([3 / 16, 1 / 4, 1 / 4])
    assert paired_tests([]) == ()


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005, 0.9, 0.04], [0.05, 0.12, 0.12, 0.03, 0.9, 0.12]),
        ([0.5, 0.6, 0.001], [1.0, 1.0, 0.003]),
        ([1.0, 1.0, 0.3], [1.0, 1.0, 0.9]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_as_another_implementation_has_it(given: list[float], adjusted: list[float]) -> None:
    # The values are those of statsmodels 0.15.0, multipletests(given, method="holm")[1].
    assert holm(given).tolist() == pytest.approx(adjusted, rel=1e-12)
