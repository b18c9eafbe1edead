"""How many samples a search measures on, and in which order."""

from __future__ import annotations

import pytest

from tpcal.calibrate.measure import in_turns, n_to_measure


@pytest.mark.parametrize(
    ("n_profile", "n_rows", "n"),
    [
        (392, None, 784),
        (64, 10_000, 128),
        (64, 200, 100),  # the other half stays unseen
        (64, 100, 64),  # never fewer than the profile's
        (64, 64, 64),
    ],
)
def test_a_search_measures_on_twice_the_samples_where_there_are_so_many(n_profile, n_rows, n):
    assert n_to_measure(n_profile, n_rows) == n


def test_groups_come_in_turns():
    assert in_turns(["b", "a", "a", "b", "b"]) == [1, 0, 2, 3, 4]
