"""How many samples a search measures on, and in which order."""

from __future__ import annotations

import pytest

from tpcal.calibrate.measure import in_turns, n_of_finals


@pytest.mark.parametrize(
    ("n_measured", "n_questions", "n"),
    [
        (392, None, 784),
        (64, 10_000, 128),
        (64, 200, 36),  # the other half stays unseen
        (64, 100, 0),
        (64, 64, 0),
    ],
)
def test_finalists_get_twice_as_many_further_samples_where_there_are_so_many(
    n_measured, n_questions, n
):
    assert n_of_finals(n_measured, n_questions) == n


def test_what_the_profile_used_is_no_further_sample():
    assert n_of_finals(14, None, 56) == 28
    assert n_of_finals(14, 140, 56) == 14


def test_groups_come_in_turns():
    assert in_turns(["b", "a", "a", "b", "b"]) == [1, 0, 2, 3, 4]
