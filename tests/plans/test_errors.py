from __future__ import annotations

import pytest

from tpcal.plans.errors import SHOWN, excerpt, listed


@pytest.mark.parametrize("n", [0, 1, SHOWN - 1, SHOWN])
def test_short_values_are_shown_whole(n: int) -> None:
    assert excerpt("x" * n) == "x" * n


@pytest.mark.parametrize("limit", [3, 10, 11, SHOWN])
def test_of_long_values_the_ends_are_shown(limit: int) -> None:
    text = "".join(chr(0x4E00 + at) for at in range(1000))
    said = excerpt(text, limit)
    start, end = said.split("…")
    assert len(said) == limit
    assert text.startswith(start)
    assert text.endswith(end)


def test_what_is_shown_stays_on_its_line() -> None:
    assert excerpt("a\nb\t\x1b[31m\u2028é") == "a b  [31m é"
    assert excerpt([1, "a\n"]) == r"[1, 'a\n']"


def test_of_many_names_the_first_are_listed() -> None:
    assert listed(["a", 2]) == "a, 2"
    assert listed(list("abcde"), most=3) == "a, b, c and 2 more"
    assert len(listed(["x" * 1000] * 1000)) < 2000
