"""Section of loss against cost: measured plans, the front, published schedules and controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tpcal.plans.formats import count, nats
from tpcal.plans.plan_records import Cut
from tpcal.report.chart_style import FAINT, INK, QUIET, axis, frame, nats_axis, plain, top_of
from tpcal.report.elements import Chart, HtmlTable, Section, figure, rounded, spoken
from tpcal.report.front_references import Mark, best_published, controls, presets
from tpcal.report.label_places import HALF, placed

if TYPE_CHECKING:
    from tpcal.planner.search.front import Point
    from tpcal.report.inputs import Given, Material

WIDTH, HEIGHT = 900, 460
"""Size of the chart in pixels, by which names are placed."""
LOWEST = 1e-4
"""Smallest loss in nats that the chart shows."""
NEAR = 8
"""Distance in pixels below which marks share one name."""
Place = tuple[float, float]
"""(layer-average keep, loss), or pixels."""


def fronts(material: Material) -> Section:
    """The section of loss against cost."""
    marks = (*presets(material), *controls(material))
    return Section(
        "front",
        "Loss against cost",
        _lead(material),
        "Each point is a plan: cheaper to the left, closer to the unpruned model below, which has "
        "keep 1 and loses nothing. A quarter of the loss is that of the worst group, the rest is "
        "the mean of all groups; a sample counts with at most 1 nat. Filled marks were measured "
        "by running the model, hollow ones are predicted from single cuts; controls are single "
        "cuts before the decoder that choose tokens at random or in a grid.",
        (front_chart(material, marks),),
    )


def front_chart(material: Material, marks: Sequence[Mark]) -> Chart:
    """The chart of loss against cost."""
    front = material.front
    solid = bool(material.known)
    own_places = [(g.cost.layer_average_keep, material.score(g)) for g in material.plans]
    values = [
        *(p.loss for p in (*front, *material.predicted_front)),
        *(m.loss for m in marks),
        *(y for _, y in own_places),
    ]
    low = min([v for v in values if v > LOWEST] or [1e-3]) / 2
    high = top_of(values, 0.13)
    fronts = [material.predicted_front, *([front] if solid else [])]
    lines = [[(p.layer_average_keep, p.loss) for p in line if p.loss > low] for line in fronts]
    where = _names(marks, own_places, lines, low, high)
    data = [*_others(material), _predicted_line(material.predicted_front)]
    data += [_measured_line(front)] if solid else []
    for kind, symbol in (("preset", "square"), ("control", "x")):
        for measured in (True, False):
            own = [m for m in marks if (m.kind, m.measured) == (kind, measured)]
            data += [_marks(own, symbol, where)] if own else []
    data += [_plan(material, given) for given in material.plans]
    span = axis("layer-average keep", range=[0, 1.02])
    axes = {"xaxis": span, "yaxis": nats_axis("loss, nats per answer token", low, high)}
    layout = frame(HEIGHT, **axes)
    return Chart(
        "front",
        "Loss against layer-average keep",
        "Points of plans by what they cost and what they lose, with the front that joins the "
        "best, published schedules, controls, and the plans of this report.",
        figure(data, layout),
        _table(material, front, marks),
    )


def _names(
    marks: Sequence[Mark],
    taken: Sequence[Place],
    lines: Sequence[Sequence[Place]],
    low: float,
    high: float,
) -> dict[Mark, tuple[str, str]]:
    """The name and side of each mark with a free place; marks at one place share a name.

    A name covers neither another name nor a point or line.

    Args:
        marks: Marks to name.
        taken: Further points in the chart.
        lines: Corners of the lines in the chart.
        low: Loss at the lower end of the chart.
        high: Loss at the upper end of the chart.
    """

    def spot(place: Place) -> Place:
        share = math.log(max(place[1], low) / low) / math.log(high / low)
        return place[0] * WIDTH, share * (HEIGHT - 90)

    together: dict[Mark, list[Mark]] = {}
    for mark in marks:
        here = spot((mark.keep, mark.loss))
        near = (m for m in together if m.kind == mark.kind)
        same = (m for m in near if math.dist(here, spot((m.keep, m.loss))) < NEAR)
        together.setdefault(next(same, mark), []).append(mark)
    first = list(together)
    names = [", ".join(dict.fromkeys(m.name for m in own)) for own in together.values()]
    others = [spot(place) for place in taken]
    others += [at for line in lines for at in _along([spot(place) for place in line])]
    sides = placed(names, [spot((m.keep, m.loss)) for m in first], others, WIDTH, HEIGHT - 90)
    found = zip(first, names, sides, strict=True)
    return {mark: (name, side) for mark, name, side in found if side}


def _along(corners: Sequence[Place]) -> Iterator[Place]:
    """Points of a line, so close that no name fits between two of them."""
    for (x0, y0), (x1, y1) in pairwise(corners):
        n = max(1, round(math.hypot(x1 - x0, y1 - y0) / (2 * HALF)))
        yield from ((x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n) for i in range(n + 1))


def _others(material: Material) -> list[dict[str, Any]]:
    if not material.known:
        return []
    own = [m.point for m in material.known]
    trace = _points("measured by searches", own)
    return [{**trace, "mode": "markers", "marker": {"color": FAINT, "size": 6}}]


def _predicted_line(front: Sequence[Point]) -> dict[str, Any]:
    """A thin dotted line that ends below the smallest loss shown."""
    return {
        **_points("front, predicted", [p for p in front if p.loss > LOWEST]),
        "mode": "lines+markers",
        "line": {"color": QUIET, "width": 1.2, "dash": "dot"},
        "marker": {"color": QUIET, "size": 4, "symbol": "circle-open"},
    }


def _measured_line(front: Sequence[Point]) -> dict[str, Any]:
    return {
        **_points("front, measured", front),
        "mode": "lines+markers",
        "line": {"color": QUIET, "width": 1.5},
        "marker": {"color": QUIET, "size": 7},
    }


def _points(name: str, own: Sequence[Point]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "x": [rounded(p.layer_average_keep) for p in own],
        "y": [rounded(max(p.loss, 1e-9)) for p in own],
        "text": [plain(cuts_text(p.cuts)) for p in own],
        "hovertemplate": "%{text}<br>keep %{x:.4f}, %{y:.4f} nats<extra></extra>",
    }


def _marks(
    own: Sequence[Mark], symbol: str, where: Mapping[Mark, tuple[str, str]]
) -> dict[str, Any]:
    what, measured = {"preset": "published", "control": "control"}[own[0].kind], own[0].measured
    return {
        "type": "scatter",
        "mode": "markers+text",
        "customdata": [plain(m.name) for m in own],
        "name": f"{what}, {'measured' if measured else 'predicted'}",
        "x": [rounded(m.keep) for m in own],
        "y": [rounded(max(m.loss, 1e-9)) for m in own],
        "text": [plain(where[m][0]) if m in where else "" for m in own],
        "textposition": [where[m][1] if m in where else "middle right" for m in own],
        "textfont": {"size": 10, "color": QUIET},
        "marker": {
            "symbol": symbol if measured else f"{symbol}-open",
            "color": INK,
            "size": 7,
            "line": {"width": 1.2 if measured else 1.5, "color": INK},
        },
        "hovertemplate": "%{customdata}<br>keep %{x:.4f}, %{y:.4f} nats"
        "<extra>%{fullData.name}</extra>",
    }


def _plan(material: Material, given: Given) -> dict[str, Any]:
    open_ = "" if given.measured else "-open"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(given.name),
        "x": [rounded(given.cost.layer_average_keep)],
        "y": [rounded(max(material.score(given), 1e-9))],
        "marker": {
            "symbol": given.symbol + open_,
            "color": given.colour,
            "size": 14,
            "line": {"width": 2, "color": given.colour},
        },
        "hovertemplate": "%{fullData.name}<br>keep %{x:.4f}, %{y:.4f} nats<extra></extra>",
    }


def _table(material: Material, front: Sequence[Point], marks: Sequence[Mark]) -> HtmlTable:
    rows = [
        (
            g.name,
            "this report",
            _kind(bool(g.measured)),
            g.cost.layer_average_keep,
            material.score(g),
        )
        for g in material.plans
    ]
    fronts = dict.fromkeys((*front, *material.predicted_front))
    rows += [
        (cuts_text(p.cuts), "front", _kind(p.measured), p.layer_average_keep, p.loss)
        for p in fronts
    ]
    rows += [(m.name, m.kind, _kind(m.measured), m.keep, m.loss) for m in marks]
    text = tuple((n, what, how, f"{keep:.4f}", nats(loss)) for n, what, how, keep, loss in rows)
    head = ("plan", "what", "loss is", "layer-average keep", "loss, nats")
    return HtmlTable("Plans by cost and loss", head, text, n_text=3)


def cuts_text(cuts: Sequence[Cut]) -> str:
    """`0:0.5 grid, 5:0.1 attention`, or `unpruned`."""
    words = (f"{c.layer}:{c.keep:.3g} {c.selector or ''}".strip() for c in cuts)
    return ", ".join(words) or "unpruned"


def _kind(measured: bool) -> str:
    return "measured" if measured else "predicted"


def _lead(material: Material) -> str:
    n, front = len(material.known), material.front
    if n:
        text = f"{count(n, 'plan')} measured on all samples; {len(front)} of them on the front."
    else:
        text = "No search has measured plans yet, so the front is predicted."
    for given in material.plans[:1]:
        own, average = material.score(given), given.cost.layer_average_keep
        how = "loses" if given.measured else "is predicted to lose"
        text += f" {given.name} {how} {spoken(own)} nats at keep {average:.2g}"
        best = None if given.plan.source else best_published(material, average)
        if best:
            text += f"; at that cost the best published schedule, {best[0]}, is predicted to "
            text += f"lose {spoken(best[1])}"
        text += "."
        known = [m.point.loss for m in material.known if m.point.cuts == given.plan.cuts]
        if given.measured and known and known[0] < 0.99 * own:
            text += (
                f" On the samples of the search it lost only {spoken(known[0])}: the search chose "
                "by those, and the plan's own figure is of samples that it did not choose by."
            )
    return text
