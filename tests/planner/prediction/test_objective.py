from __future__ import annotations

import numpy as np
import pytest

from tpcal.planner.prediction.objective import Objective
from tpcal.plans.errors import UsageError


def test_a_quarter_is_the_worst_group_and_the_rest_the_mean() -> None:
    assert Objective().of({"a": 0.1, "b": 0.5}) == pytest.approx((0.5 + 3 * 0.3) / 4)


@pytest.mark.parametrize(("name", "share"), [("mean", 0.0), ("mixed", 0.25), ("worst", 1.0)])
def test_an_objective_has_its_share_of_the_worst_group(name, share) -> None:
    found = Objective(name=name).of({"a": 0.1, "b": 0.5})
    assert found == pytest.approx(share * 0.5 + (1 - share) * 0.3)


def test_an_unknown_objective_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match="must be mean, mixed, worst; got median"):
        Objective(name="median")
    texts = [Objective(name=name).text for name in ("mean", "worst", "mixed")]
    assert texts[2] == f"25 % of {texts[1]}, the rest of {texts[0]}"
    assert Objective({"a": 2.0}, "mean").text == f"{texts[0]}, weighed by group"


def test_a_weight_counts_in_both_parts() -> None:
    # Weights 3 and 1: a's loss counts 1.5 times, b's half.
    assert Objective({"a": 3}).of({"a": 0.2, "b": 0.4}) == pytest.approx((0.3 + 3 * 0.25) / 4)


def test_the_same_weight_for_all_changes_nothing() -> None:
    losses = np.random.default_rng(0).uniform(size=(5, 3))
    even = Objective().values(losses, "abc")
    np.testing.assert_allclose(Objective(dict.fromkeys("abc", 7.0)).values(losses, "abc"), even)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"reading": 2.0}, "Weights must be of a, b; got reading."),
        ({"a": 0.0}, "The weight of a must be above 0; got 0."),
        ({"a": float("nan")}, "got nan"),
        ({"a": float("inf")}, "got inf"),
    ],
)
def test_bad_weights_are_one_clear_line(weights, said) -> None:
    with pytest.raises(UsageError, match=said):
        Objective(weights).check(["a", "b"])
