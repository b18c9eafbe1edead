"""Broken copies of good files: strategies of hypothesis that change data, text or lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

Path = tuple[Any, ...]
Edit = tuple[Path, Any]
"""Where, and the value there; `GONE` deletes."""
Lines = tuple[int, list[str]]
"""Number of a line, and those that stand in its place."""
GONE = "<gone>"
NESTED: Any = []
for _ in range(40):
    NESTED = [NESTED]
NASTY = (
    *(None, True, "", " ", "\ud800", "\x00", "\x1b[2J", "a" * 300, "nan", ".inf", "=", "<<", "~"),
    *(0, -1, 1, 2, 7, 8, 10**6, 2**31, 2**53 + 1, 2**63, 10**400, 0.5, 1.5, -0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), [], {}, [{}], [None], {"a": None}, {"a": {"b": None}}, {"": {}}),
    *(["a"] * 3, {"a": [{"b": {}}]}, NESTED, {"keep": 2}),
)
"""Values that have broken something, or could."""
SNIPPETS = (
    *(
        '!!int ""',
        "!!timestamp x",
        "!!bool x",
        "!!float x",
        "!!str 3",
        "!!set {a}",
        "!x y",
        "!!int",
    ),
    *(
        "&a [1]",
        "*a",
        "<<: {a: 1}",
        "? {a: 1}",
        "- - - -",
        "[[[[",
        "{{",
        "]",
        "}",
        "%YAML 9",
        "---",
    ),
    *("2024-01-01", "2024-13-45", "0x_", "0b", "1:60:60", "1_000", "1e400", "-.inf", ".nan", "~"),
    *(
        "1" * 400,
        "0x" + "f" * 400,
        "1" + ":1" * 200 + ".0",
        "\x00",
        "\u2028",
        "\ufeff",
        "\t",
        "'",
        '"',
    ),
    *(
        "1: a",
        "2024-01-01: b",
        "null: c",
        "keep: 1",
        "schema: 1",
        "\\ud800",
        '"\\ud800"',
        "|",
        ">",
        "#",
    ),
)


def values() -> st.SearchStrategy[Any]:
    """Any plain value; those that are known to hurt more often than others."""
    anything = st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.dates())
    return st.one_of(st.sampled_from(NASTY), anything)


TEXTS = st.text(max_size=3)
KEYS = st.one_of(TEXTS, st.integers(), st.dates())


def edits(data: Any, keys: st.SearchStrategy[Any] = KEYS) -> st.SearchStrategy[list[Edit]]:
    """One to three changes of plain data: values replaced, added and deleted.

    Args:
        data: Lists and mappings.
        keys: Of what is added to mappings.
    """
    paths = sorted(_paths(data), key=repr)
    one = st.tuples(st.sampled_from(paths), st.one_of(values(), st.just(GONE)))
    added = st.sampled_from([p for p in paths if isinstance(_at(data, p), dict)]).flatmap(
        lambda path: st.tuples(
            keys.map(lambda key: (*path, key)),
            values(),
        )
    )
    swapped = st.tuples(st.sampled_from(paths), st.sampled_from(paths)).map(
        lambda pair: (pair[0], deepcopy(_at(data, pair[1])))
    )
    return st.lists(st.one_of(one, one, added, swapped), min_size=1, max_size=3)


def edited(data: Any, changes: list[Edit]) -> Any:
    """The data with the changes made; those whose place an earlier one removed are left out."""
    data = deepcopy(data)
    for path, value in changes:
        if not path:
            return value
        try:
            place = _at(data, path[:-1])
            if value == GONE:
                del place[path[-1]]
            else:
                place[path[-1]] = deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue
    return data


def mangled(text: str, snippets: tuple[str, ...] = SNIPPETS) -> st.SearchStrategy[str]:
    """The text with one to three of its words or lines replaced, repeated or cut off."""

    def change(drawn: list[tuple[int, int, str]]) -> str:
        made = text
        for start, length, snippet in drawn:
            at = start % (len(made) + 1)
            made = made[:at] + snippet + made[at + length :]
        return made

    piece = st.one_of(st.sampled_from(snippets), st.text(max_size=4), st.just(""))
    one = st.tuples(st.integers(0, len(text)), st.integers(0, 40), piece)
    return st.lists(one, min_size=1, max_size=3).map(change)


def lines(text: str) -> st.SearchStrategy[Lines]:
    """Of a file of JSON lines one that is changed inside, or mangled, or lost, or repeated."""
    rows = text.splitlines()

    def change(at: int) -> st.SearchStrategy[Lines]:
        row = rows[at]
        data = json.loads(row)
        inside = edits(data, TEXTS).map(lambda found: json.dumps(edited(data, found), default=str))
        made = st.one_of(
            *(inside.map(lambda one: [one]), inside.map(lambda one: [one])),
            *(mangled(row).map(lambda one: [one]), st.just([]), st.just([row, row])),
        )
        return made.map(lambda new: (at, new))

    return st.integers(0, len(rows) - 1).flatmap(change)


def with_lines(text: str, change: Lines) -> str:
    """The file with that line replaced."""
    rows = text.splitlines()
    at, new = change
    return "\n".join([*rows[:at], *new, *rows[at + 1 :]]) + "\n"


def _paths(data: Any, at: Path = ()) -> Iterator[Path]:
    yield at
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from _paths(data[key], (*at, key))


def _at(data: Any, path: Path) -> Any:
    for key in path:
        data = data[key]
    return data
