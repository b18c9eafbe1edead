"""Charts of the measured accuracy with intervals: a forest plot, and accuracy by cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.evaluation.evaluation_results import CONTROL
from tpcal.report.chart_style import BLUE, INK, QUIET, axis, frame, plain
from tpcal.report.elements import Chart, HtmlTable, error_bars, figure, rounded
from tpcal.report.label_places import HALF, LETTER, placed

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.evaluation_results import EntryResult, EvaluationResults
    from tpcal.calibrate.evaluation.shares import Share

KINDS = {
    "plan": ("plan", BLUE, "circle"),
    "preset": ("published schedule", INK, "square"),
    "control": ("control", QUIET, "x"),
}
CONTROLS = ("x", "cross", "triangle-up", "triangle-down", "star-diamond")
"""Symbols that distinguish the controls in the chart by cost."""
ROW, BETWEEN = 24, 0.5
"""Height of a row in pixels, and number of rows left free between plans."""
INDENT = 16
"""Indentation of controls in pixels."""
MOST_LETTERS = 24
"""Largest length of a name, so that it fits on a phone; the table has the full name."""
APART = 0.05
"""Smallest range of layer-average keeps for which the chart by cost is drawn."""
WIDTH, HEIGHT = 900, 300
"""Size of the plot area in pixels, by which names are placed."""


def grouped(results: EvaluationResults) -> list[EntryResult]:
    """The entries with the controls of every plan below it."""
    found = [one for plan in results.plans for one in (plan, *results.controls(plan.name))]
    return [*found, *(e for e in results.entries if e not in found)]


def forest(results: EvaluationResults, what: str) -> Chart:
    """A forest plot with a row for each entry, and the unpruned model as a line."""
    entries, before = grouped(results), results.unpruned.accuracy
    rows = _rows(entries, first=1.0 if before else 0.0)
    data = [_unpruned(before)] if before else []
    data += [_dots(kind, entries, rows) for kind in KINDS if any(e.kind == kind for e in entries)]
    low, high = _limits([e.value for e in entries] + [before])
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1}
    last = max(rows, default=0) + 0.8
    layout = frame(
        round(106 + ROW * (last + 0.8)),
        xaxis=axis(what, range=[low, high], tickformat=".0%", tickangle=0),
        yaxis=axis("", range=[last, -0.8], showticklabels=False, showgrid=False, ticks=""),
        margin={"l": _left(entries) + 14, "r": 52, "t": 24, "b": 8},
        shapes=[
            {**line, "x0": s.value, "x1": s.value, "line": {"color": INK, "width": 1}}
            | {"layer": "below"}
            for s in [before]
            if s
        ],
        annotations=_words(entries, rows, before),
        showlegend=False,
    )
    text = tuple((e.name, KINDS[e.kind][0], f"{e.keep:.4f}", exact(e.value)) for e in entries)
    return Chart(
        "evaluation",
        f"{what[0].upper()}{what[1:]}, with 95 % intervals",
        f"A row for each plan and, below it, its controls: {what} as a dot with its interval.",
        figure(data, layout),
        HtmlTable(f"{what}, with 95 % intervals", ("entry", "what", "keep", what), text, n_text=2),
        narrow={"xaxis": {"nticks": 4}},
    )


def by_cost(results: EvaluationResults, what: str) -> Chart | None:
    """The values over layer-average keep; None if all entries cost nearly the same."""
    entries = grouped(results)
    keeps = [e.keep for e in entries]
    if max(keeps, default=0.0) - min(keeps, default=0.0) <= APART:
        return None
    low, high = _limits([e.value for e in entries] + [results.unpruned.accuracy])
    right = min(1.02, 1.25 * max(keeps))
    data = [
        _series(name, own, symbol, colour, _sides(own, results, (right, low, high)))
        for name, own, symbol, colour in _kinds(entries)
    ]
    before = results.unpruned.accuracy
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    layout = frame(
        400,
        xaxis=axis("layer-average keep", range=[0, right]),
        yaxis=axis(what, range=[low, high], tickformat=".0%"),
        shapes=[
            {**line, "y0": s.value, "y1": s.value, "line": {"color": INK, "width": 1}}
            for s in [before]
            if s
        ],
    )
    text = tuple((e.name, f"{e.keep:.4f}", exact(e.value)) for e in entries)
    return Chart(
        "evaluation-cost",
        f"{what[0].upper()}{what[1:]} against layer-average keep; the line is the unpruned model",
        f"Points with intervals: {what} of plans, published schedules and controls by cost.",
        figure(data, layout),
        HtmlTable(f"{what} against cost", ("entry", "keep", what), text),
    )


def exact(share: Share | None) -> str:
    """`93.1 % [91.0, 95.2]`"""
    if share is None:
        return "–"
    value, low, high = (f"{100 * x:.1f}" for x in (share.value, share.low, share.high))
    return f"{value} % [{low}, {high}]"


def _rows(entries: Sequence[EntryResult], first: float) -> list[float]:
    """The height of every row, with space between plans."""
    found, at = [], first - 1 + (BETWEEN if first else 0.0)
    for i, entry in enumerate(entries):
        at += 1 + (BETWEEN if i and entry.kind != CONTROL else 0.0)
        found.append(at)
    return found


def _limits(spans: Sequence[Share | None]) -> tuple[float, float]:
    known = [s for s in spans if s]
    low, high = min(s.low for s in known), max(s.high for s in known)
    room = 0.04 * (high - low) + 0.005
    return max(-0.01, low - room), min(1.01, high + room)


def _words(
    entries: Sequence[EntryResult], rows: Sequence[float], before: Share | None
) -> list[dict[str, Any]]:
    """Annotations: names to the left of the rows and costs to the right."""
    left = {"xref": "paper", "x": 0, "xanchor": "right", "showarrow": False}
    right = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 10, "showarrow": False}
    size = {"font": {"size": 12}}
    start = -(_left(entries) + 8)
    left |= {"xanchor": "left", "xshift": start}
    found = [{**right, **size, "y": -0.8, "yanchor": "bottom", "text": "keep"}]
    if before:
        found.append({**left, **size, "y": 0, "text": "unpruned"})
        found.append({**right, **size, "y": 0, "text": "1"})
    for entry, row in zip(entries, rows, strict=True):
        is_control = entry.kind == CONTROL
        font = {"size": 12, "color": QUIET if is_control else INK}
        place = {"xshift": start + INDENT * is_control}
        found.append(
            {**left, **place, "font": font, "y": row, "text": plain(_cropped(entry.short))}
        )
        found.append({**right, "font": font, "y": row, "text": f"{entry.keep:.3f}"})
    return found


def _left(entries: Sequence[EntryResult]) -> int:
    """The width of the names in pixels."""
    longest = max(len("unpruned"), *(len(_cropped(e.short)) for e in entries))
    return round(LETTER * longest) + INDENT


def _cropped(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"


def _unpruned(span: Share) -> dict[str, Any]:
    return _trace("unpruned", [("unpruned", 1.0, span)], "circle-open", INK) | {"y": [0]}


def _dots(kind: str, entries: Sequence[EntryResult], rows: Sequence[float]) -> dict[str, Any]:
    name, colour, symbol = KINDS[kind]
    own = [(e, row) for e, row in zip(entries, rows, strict=True) if e.kind == kind and e.value]
    points = [(e.name, e.keep, e.value) for e, _ in own if e.value]
    return _trace(name, points, symbol, colour) | {"y": [row for _, row in own]}


def _trace(
    name: str, points: Sequence[tuple[str, float, Share]], symbol: str, colour: str
) -> dict[str, Any]:
    """A trace of dots with intervals along x."""
    spans = [span for _, _, span in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [rounded(s.value) for s in spans],
        "error_x": error_bars(spans, colour),
        "customdata": [[plain(n), f"{keep:.4g}", exact(s)] for n, keep, s in points],
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"color": colour}},
        "hovertemplate": "%{customdata[0]}<br>%{customdata[2]}, keep %{customdata[1]}"
        "<extra></extra>",
    }


def _kinds(entries: Sequence[EntryResult]) -> list[tuple[str, list[EntryResult], str, str]]:
    """(name, entries, symbol, colour) of plans, published schedules, and each kind of control."""
    found = []
    for kind in ("plan", "preset"):
        name, colour, symbol = KINDS[kind]
        found.append((name, [e for e in entries if e.kind == kind], symbol, colour))
    blind = list(dict.fromkeys(e.short for e in entries if e.kind == CONTROL))
    for i, name in enumerate(blind):
        own = [e for e in entries if e.kind == CONTROL and e.short == name]
        found.append((f"control: {name}", own, CONTROLS[i % len(CONTROLS)], QUIET))
    return [one for one in found if one[1]]


def _sides(
    own: Sequence[EntryResult], results: EvaluationResults, limits: tuple[float, float, float]
) -> list[str | None]:
    """The places of the names of plans; controls have no name in the chart."""
    right, low, high = limits

    def height(span: Share | None) -> float:
        return (span.value - low) / (high - low) * HEIGHT if span else -HEIGHT

    def spot(entry: EntryResult) -> tuple[float, float]:
        return entry.keep / right * WIDTH, height(entry.value)

    if own[0].kind == CONTROL:
        return [None] * len(own)
    others = [spot(e) for e in results.entries if e not in own]
    line = height(results.unpruned.accuracy) + HALF  # thinner than a point: names come nearer
    others += [(2 * HALF * i, line) for i in range(int(WIDTH / HALF / 2))]
    names = [_cropped(e.short) for e in own]
    return placed(names, [spot(e) for e in own], others, WIDTH, HEIGHT)


def _series(
    name: str, own: Sequence[EntryResult], symbol: str, colour: str, sides: Sequence[str | None]
) -> dict[str, Any]:
    known = [(e, s, side) for e, side in zip(own, sides, strict=True) if (s := e.value)]
    trace = _trace(name, [(e.name, e.keep, s) for e, s, _ in known], symbol, colour)
    error = trace.pop("error_x")
    return {
        **trace,
        "mode": "markers" if own[0].kind == CONTROL else "markers+text",
        "x": [rounded(e.keep) for e, _, _ in known],
        "y": trace["x"],
        "error_y": {**error, "thickness": 1},
        "name": plain(name),
        "text": [plain(_cropped(e.short)) if side else "" for e, _, side in known],
        "textposition": [side or "middle right" for _, _, side in known],
        "textfont": {"size": 11, "color": INK},
    }
