"""The values of options: parameter types and callbacks that read a value from text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from tpcal.plans.errors import UsageError
from tpcal.plans.extras import require

MAX_LISTED = 10_000
"""Most items of a range in a list."""


class Listed(click.ParamType):
    """A list `a,b,c` whose items ``item`` reads, each once; ``ranges`` also allows `0-3,6`."""

    name = "list"

    def __init__(self, item: Callable[[str], Any], *, ranges: bool = False) -> None:
        self.item = item
        self.ranges = ranges

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> tuple[Any, ...]:
        """The items in the given order."""
        if isinstance(value, tuple):
            return value
        items: list[Any] = []
        for word in filter(None, (w.strip() for w in value.split(","))):
            try:
                items += self._read(word)
            except (ValueError, OverflowError) as error:
                self.fail(f"{word!r}: {error}", param, ctx)
        if not items:
            self.fail("the list must name something; got an empty one", param, ctx)
        return tuple(dict.fromkeys(items))

    def _read(self, word: str) -> Sequence[Any]:
        first, dash, last = word.partition("-")
        if self.ranges and dash and first:
            span = range(self.item(first), self.item(last) + 1)
            if not 0 < len(span) <= MAX_LISTED:
                raise ValueError("a range must rise")
            return span
        return [self.item(word)]


def layer(word: str) -> int:
    """Reads a layer number; raises ValueError for other text."""
    if not word.isdecimal():
        raise ValueError("a layer must be a whole number of 0 or more, or a range like 4-8")
    return int(word)


def keep(word: str) -> float:
    """Reads a keep in [0, 1); raises ValueError for other text."""
    number = _number(word)
    if not 0 <= number < 1:
        raise ValueError("a keep must be at least 0 and below 1")
    return number


def selector(word: str) -> str:
    """Reads the name of a selector; raises ValueError if there is no such selector."""
    from tpcal.plans.selectors import names

    if word not in names():
        raise ValueError(f"no selector is called that; known: {', '.join(names())}")
    return word


def share(_ctx: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Callback that reads a budget as a share, in the notation of any tool."""
    if value is None:
        return None
    from tpcal.plans.published.other_tools import share_kept

    try:
        return share_kept(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


class Finite(click.FloatRange):
    """A finite number in a range; click.FloatRange alone accepts ``nan``."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


def weight(
    _ctx: click.Context, _option: click.Parameter, words: Sequence[str]
) -> dict[str, float]:
    """Callback that reads repeated `GROUP=WEIGHT` options."""
    found = {}
    for word in words:
        group, sign, value = word.rpartition("=")
        if not sign or not group or not 0 < _number(value) < math.inf:
            raise click.BadParameter(f"must be GROUP=WEIGHT with a weight above 0; got {word}")
        found[group] = float(value)
    return found


def result_files(
    _ctx: click.Context, _option: click.Parameter, paths: Sequence[Path]
) -> tuple[Path, ...]:
    """Callback that reads repeated result files, which end in .json or .md."""
    for path in paths:
        if path.suffix.lower() not in (".json", ".md"):
            raise click.BadParameter(f"must end in .json or .md; got {path}")
    return tuple(paths)


def unless_none(_ctx: click.Context, _option: click.Parameter, value: str) -> str | None:
    """The word; None if it is ``none``."""
    return None if value == "none" else value


def n_bytes(_ctx: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """Callback that reads a size such as 8GB as bytes."""
    if value is None:
        return None
    require("plan", "accelerate")
    from accelerate.utils import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(value.replace(" ", "").upper().replace("IB", "iB")))
    except ValueError:
        raise click.BadParameter(f"must be a size such as 8GB or 500MiB; got {value}") from None


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
