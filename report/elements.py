"""Elements of the report: charts with their controls, tables and sections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from tpcal.calibrate.bench.ratios import Spread
    from tpcal.calibrate.evaluation.shares import Share

Matrix = list[list[float | None]]


@dataclass(frozen=True)
class HtmlTable:
    """A table of plain text; the first cell of a row is its name."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1
    """Number of columns from the left that hold words; the others hold numbers."""
    strong: frozenset[int] = frozenset()
    """Indices of the rows to emphasise."""
    under: frozenset[int] = frozenset()
    """Indices of the rows that belong to the row above."""
    folded: bool = False
    """Whether the table is folded until it is opened."""


@dataclass(frozen=True)
class Control:
    """A choice that changes the data of a chart."""

    label: str
    options: tuple[tuple[str, str], ...]
    """(value, label) of every option."""
    chosen: str
    highlights: bool = False
    """Whether the choice emphasises the line of this name instead of changing the data."""


@dataclass(frozen=True)
class Chart:
    """A chart with its controls and a table of the same data.

    With controls, ``views`` holds the data for each combination of their values, joined by `|`.
    The data has a row for every line of the chart and of the table, or of a heat map.
    """

    name: str
    """Unique name on the page."""
    title: str
    says: str
    """Description of the chart for readers who cannot see it."""
    figure: Figure
    table: HtmlTable
    controls: tuple[Control, ...] = ()
    views: Mapping[str, Matrix] = field(default_factory=dict)
    frames: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Layout for each value of a control."""
    narrow: Mapping[str, Any] = field(default_factory=dict)
    """Layout that replaces the corresponding parts on a phone."""

    @property
    def script(self) -> Markup:
        """The chart as JSON for a script element."""
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
    """A part of the page with its main result in a sentence or two, and how to read it."""

    name: str
    title: str
    lead: str
    how: str
    parts: tuple[Chart | HtmlTable, ...] = ()
    notes: tuple[str, ...] = ()
    side_by_side: bool = False
    """Whether the parts stand side by side on wide screens."""
    points: tuple[tuple[str, str], ...] = ()
    """(name, description) of the list below the lead."""


def script_json(data: Any) -> Markup:
    """JSON in which no `<` can end the script element around it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "").replace("\u2029", ""))


def rounded(value: float | None, digits: int = 4) -> float | None:
    """The value with this many significant digits; None for None and nan."""
    return None if value is None or value != value else float(f"{value:.{digits}g}")


def spoken(value: float) -> str:
    """The value with two significant digits, for sentences."""
    return _digits(value, 2)


def written(value: float) -> str:
    """The value with three significant digits, for tables."""
    return _digits(value, 3)


def _digits(value: float, n: int) -> str:
    if value != value:
        return "–"
    if 0 < abs(value) < 1e-4:
        return "< 0.0001"
    return f"{value:#.{n}g}".rstrip(".") if abs(value) < 10**n else f"{value:.0f}"


def quoted(names: Sequence[str]) -> list[str]:
    """The names of groups in quotes, for sentences."""
    return [f"“{name}”" for name in names]


def listed(words: Sequence[str], most: int = 4) -> str:
    """`a, b and c`, or `a, b, c and 4 more`."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> Figure:
    """A plotly figure, whose names and values plotly checks."""
    import plotly.graph_objects as go

    return go.Figure(data=list(data), layout=dict(layout))


def error_bars(spans: Sequence[Share | Spread], colour: str) -> dict[str, Any]:
    """Error bars without caps for points along x."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [rounded(s.high - s.value) for s in spans],
        "arrayminus": [rounded(s.value - s.low) for s in spans],
        "color": colour,
        "thickness": 1.5,
        "width": 0,
    }
