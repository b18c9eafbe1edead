from __future__ import annotations

import numpy as np
import pytest

from tpcal.calibrate.evaluation.paired_tests import Pair, holm, paired_tests, sign_flip_p


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


def test_graded_scores_are_tested_by_flipping_signs() -> None:
    # Differences 0.5, 0.25, 0.25 and 0: of 8 signs, two give a sum of 1 or -1, no other as much.
    one, other = np.array([1.0, 0.5, 0.75, 0.5]), np.array([0.5, 0.25, 0.5, 0.5])
    (found,) = paired_tests([Pair("a", "b", "accuracy", one, other)])
    assert (found.p, found.n_changed, found.is_graded) == (0.25, 3, True)
    assert found.difference.value == pytest.approx(0.25)


@pytest.mark.parametrize(("n_won", "n_lost"), [(6, 1), (9, 7), (40, 22), (12, 12)])
def test_the_sign_flip_test_of_hits_is_mcnemars(n_won: int, n_lost: int) -> None:
    changes = np.array([1.0] * n_won + [-1.0] * n_lost + [0.0] * 5)
    (exact,) = paired_tests([_pair([1] * n_won + [0] * n_lost, [0] * n_won + [1] * n_lost)])
    assert sign_flip_p(changes) == pytest.approx(exact.p, abs=0.005)
    assert sign_flip_p(changes) == sign_flip_p(-changes) == sign_flip_p(changes)


def test_the_sign_flip_test_is_rarely_wrong_about_noise() -> None:
    rng = np.random.default_rng(1)
    p_values = [sign_flip_p(rng.uniform(-1, 1, 12)) for _ in range(300)]
    assert np.mean(np.array(p_values) < 0.05) < 0.09  # 0.05, and three standard deviations
