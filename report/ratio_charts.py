"""Charts of times and throughput as ratios to unpruned: a row for each cell, a panel for each
measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.evaluation.evaluation_results import short_name
from tpcal.report.chart_style import INK, PLANS, axis, frame, plain
from tpcal.report.elements import Chart, HtmlTable, error_bars, figure, rounded

if TYPE_CHECKING:
    from tpcal.calibrate.bench.bench_results import BenchResults
    from tpcal.calibrate.bench.ratios import Spread

MEASURES = (
    ("ttft", "first token", "less is faster"),
    ("token", "per token", "less is faster"),
    ("throughput", "throughput", "more is faster"),
)
FINE, COARSE = (0.5, 0.65, 0.8, 1.0, 1.25, 1.5, 2.0), (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Ticks for ratios near 1 and for others, at about equal distances on a logarithmic axis."""
ROW, ABOVE, BELOW = 18, 44, 52
"""Pixels of a plan in a cell, and above and below a panel."""
SMALL_LETTER = 5.7
"""Sizes in pixels on a phone."""
GAP = 0.035
"""Gap between panels as a share of the width."""
Named = tuple[str, "Spread"]


def ratios(results: BenchResults, cells: Sequence[str]) -> Chart:
    """Three panels with one axis, which are stacked on a phone.

    Args:
        results: Results of `tpcal bench`.
        cells: Names of the cells.
    """
    plans = list(dict.fromkeys(r.name for c in results.cells for r in c.runs if r.ratios))
    ticks, limits = _scale([s for c in results.cells for r in c.runs for s in r.ratios.values()])
    lines = [_line(n, len(cells)) for n in range(1, 4)]
    panels = [
        _trace(results, cells, key, n, place, plans)
        for n, (key, _, _) in enumerate(MEASURES, start=1)
        for place in range(len(plans))
    ]
    inside = ROW * len(cells) * (len(plans) + 0.6)
    layout = frame(
        round(inside + ABOVE + BELOW + 20),
        **_axes(cells, ticks, limits, len(plans)),
        annotations=[_title(n, "left") for n in range(1, 4)],
        showlegend=len(plans) > 1,
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
        margin={"l": 8, "r": 8, "t": ABOVE, "b": 8},
    )
    return Chart(
        "bench",
        "Time and throughput as ratios to unpruned",
        "Three panels, for the time to the first token, the time per token and the throughput: "
        "dots with intervals, a row for each cell, and a line at 1 for the unpruned model.",
        figure([*lines, *panels], layout),
        _table(results, cells),
        narrow=_stacked(inside, ROW * len(plans) * (len(plans) > 1), cells),
    )


def _scale(spans: Sequence[Spread]) -> tuple[tuple[float, ...], tuple[float, float]]:
    """The ticks, and the ends of the axis as powers of ten."""
    low, high = min(0.9, *(s.low for s in spans)), max(1.1, *(s.high for s in spans))
    fine = low >= FINE[0] / 1.1 and high <= FINE[-1] * 1.1
    ends = math.log10(max(low, 1e-3)) - 0.02, math.log10(high) + 0.02
    return FINE if fine else COARSE, ends


def _axes(
    cells: Sequence[str], ticks: Sequence[float], limits: tuple[float, float], n_plans: int
) -> dict[str, Any]:
    width, found = (1 - 2 * GAP) / 3, {}
    for n in range(1, 4):
        left = (n - 1) * (width + GAP)
        x = axis("× unpruned", type="log", range=list(limits), anchor=f"y{_number(n)}")
        x |= {"tickvals": list(ticks), "ticktext": [f"{t:g}" for t in ticks]}
        x["title"] = {**x["title"], "font": {"size": 12}}
        y = axis("", range=[len(cells) - 0.5, -0.5], showgrid=False, zeroline=False)
        y |= {"tickvals": list(range(len(cells))), "ticktext": [plain(c) for c in cells]}
        y |= {"anchor": f"x{_number(n)}", "showticklabels": n == 1}
        found[_axis("x", n)] = {**x, "domain": [left, min(1.0, left + width)]}
        found[_axis("y", n)] = y
    return found


def _stacked(inside: float, legend: int, cells: Sequence[str]) -> dict[str, Any]:
    """The layout of stacked panels, with titles aligned to the end of the panels.

    The margins are fixed, so that every panel has the given height.

    Args:
        inside: Height of a panel in pixels.
        legend: Height of the legend in pixels.
        cells: Names to the left of each panel.
    """
    free, left = ABOVE + BELOW, round(SMALL_LETTER * max(map(len, cells))) + 14
    height = 3 * inside + 2 * free
    found: dict[str, Any] = {"height": round(height + ABOVE + BELOW + legend)}
    found["margin"] = {"l": left, "r": 8, "t": ABOVE + legend, "b": BELOW}
    found["annotations"] = [_title(n, "right") for n in range(1, 4)]
    for n in range(1, 4):
        top = 1 - (n - 1) * (inside + free) / height
        domain = [max(0.0, top - inside / height), top]
        found[_axis("x", n)] = {"domain": [0, 1], "automargin": False}
        found[_axis("y", n)] = {"domain": domain, "showticklabels": True, "automargin": False}
    return found


def _axis(letter: str, n: int) -> str:
    return f"{letter}axis{_number(n)}"


def _number(n: int) -> str:
    """The name of an axis in plotly: x, x2, x3."""
    return str(n) if n > 1 else ""


def _title(n: int, side: str) -> dict[str, Any]:
    _, title, better = MEASURES[n - 1]
    refs = {"xref": f"x{_number(n)} domain", "yref": f"y{_number(n)} domain"}
    place = {"x": int(side == "right"), "xanchor": side, "y": 1, "yanchor": "bottom"}
    return {**refs, **place, "text": f"<b>{title}</b>: {better}", "showarrow": False}


def _line(n: int, n_cells: int) -> dict[str, Any]:
    """A line at the unpruned model."""
    return {
        "type": "scatter",
        "mode": "lines",
        "xaxis": f"x{_number(n)}",
        "yaxis": f"y{_number(n)}",
        "x": [1, 1],
        "y": [-0.5, n_cells - 0.5],
        "line": {"color": INK, "width": 1},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _trace(
    results: BenchResults,
    cells: Sequence[str],
    key: str,
    panel: int,
    place: int,
    plans: Sequence[str],
) -> dict[str, Any]:
    """The trace of a plan in a panel; several plans are stacked in each cell."""
    name, (colour, _, symbol) = short_name(plans[place]), PLANS[place % len(PLANS)]
    own = [
        (at, run.ratios[key])
        for at, cell in enumerate(results.cells)
        for run in cell.runs
        if run.name == plans[place] and key in run.ratios
    ]
    off = (place - (len(plans) - 1) / 2) / (len(plans) + 0.6)
    spans = [span for _, span in own]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "legendgroup": name,
        "showlegend": panel == 1,
        "xaxis": f"x{_number(panel)}",
        "yaxis": f"y{_number(panel)}",
        "x": [rounded(s.value) for s in spans],
        "y": [rounded(at + off) for at, _ in own],
        "customdata": [[plain(cells[at]), ratio(s)] for at, s in own],
        "error_x": error_bars(spans, colour),
        "marker": {"color": colour, "symbol": symbol, "size": 9},
        "hovertemplate": "%{fullData.name}, %{customdata[0]}<br>× %{customdata[1]}<extra></extra>",
    }


def _table(results: BenchResults, cells: Sequence[str]) -> HtmlTable:
    rows = tuple(
        (words, short_name(run.name), *(_cell(run.ratios.get(key)) for key, _, _ in MEASURES))
        for words, cell in zip(cells, results.cells, strict=True)
        for run in cell.runs
        if run.ratios
    )
    head = ("cell", "plan", "first token", "per token", "throughput")
    return HtmlTable("Ratios to unpruned", head, rows, n_text=2)


def _cell(span: Spread | None) -> str:
    return "–" if span is None else ratio(span)


def ratio(span: Spread) -> str:
    """`0.832 [0.795, 0.916]`"""
    return f"{span.value:.3f} [{span.low:.3f}, {span.high:.3f}]"
