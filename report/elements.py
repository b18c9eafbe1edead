"""What sections of the report are made of: charts with their controls, tables, sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from tpcal.report.read_json import Span

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class HtmlTable:
    """Plain text in rows; the first cell of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1
    """Columns from the left that hold words; the others hold figures."""
    strong: frozenset[int] = frozenset()
    """Rows to make out."""
    under: frozenset[int] = frozenset()
    """Rows that belong to the one above them."""
    folded: bool = False
    """Whether it opens on demand."""


@dataclass(frozen=True)
class Control:
    """A choice that changes what a chart shows."""

    label: str
    options: tuple[tuple[str, str], ...]
    """(value, label)"""
    chosen: str
    highlights: bool = False
    """Makes out the line of that name, where other controls choose the figures."""


@dataclass(frozen=True)
class Chart:
    """A chart, its controls, and the table that says the same.

    Where there are controls, ``views`` holds the figures of each combination of their values,
    joined by `|`: a row for every line of the chart and of the table, or of a heat map.
    """

    name: str
    """Unique on the page."""
    title: str
    says: str
    """What is seen, for those who do not see it."""
    figure: Figure
    table: HtmlTable
    controls: tuple[Control, ...] = ()
    views: Mapping[str, Matrix] = field(default_factory=dict)
    frames: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Layout that comes with a value of a control."""
    narrow: Mapping[str, Any] = field(default_factory=dict)
    """Layout that takes the place of its like on a phone."""

    @property
    def script(self) -> Markup:
        """The chart as JSON that can stand in a script element."""
        drawn = self.figure.to_plotly_json()
        drawn["layout"].pop("template", None)
        data = {
            "data": drawn["data"],
            "layout": drawn["layout"],
            "views": self.views,
            "frames": self.frames,
            "narrow": self.narrow,
        }
        return script_json(data)


@dataclass(frozen=True)
class Section:
    """A part of the page: what it tells here, in a sentence or two, and how to read it."""

    name: str
    title: str
    lead: str
    how: str
    parts: tuple[Chart | HtmlTable, ...] = ()
    notes: tuple[str, ...] = ()
    side_by_side: bool = False
    """Where the screen is wide enough."""
    points: tuple[tuple[str, str], ...] = ()
    """(name, what it does), in a list below the lead."""


def script_json(data: Any) -> Markup:
    """JSON in which no `<` can end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", ""))


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Significant digits; None stays."""
    return None if value is None or value != value else float(f"{value:.{digits}g}")


def spoken(value: float) -> str:
    """Two significant digits, for sentences."""
    return _digits(value, 2)


def written(value: float) -> str:
    """Three significant digits, for tables."""
    return _digits(value, 3)


def _digits(value: float, n: int) -> str:
    if value != value:
        return "–"
    if 0 < abs(value) < 1e-4:
        return "< 0.0001"
    return f"{value:#.{n}g}".rstrip(".") if abs(value) < 10**n else f"{value:.0f}"


def quoted(names: Sequence[str]) -> list[str]:
    """Names of groups, as they stand in a sentence."""
    return [f"“{name}”" for name in names]


def listed(words: Sequence[str], most: int = 4) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> Figure:
    """A plotly figure; plotly checks every name and value."""
    import plotly.graph_objects as go

    return go.Figure(data=list(data), layout=dict(layout))


def error_bars(spans: Sequence[Span], colour: str) -> dict[str, Any]:
    """Of points along x: their intervals, without caps."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [rounded(s.high - s.value) for s in spans],
        "arrayminus": [rounded(s.value - s.low) for s in spans],
        "color": colour,
        "thickness": 1.5,
        "width": 0,
    }
