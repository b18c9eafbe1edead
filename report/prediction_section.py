"""Section of predicted against measured loss, for plans by group and for all measured plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpcal.plans.formats import count, nats
from tpcal.report.chart_style import FAINT, QUIET, frame, nats_axis, plain
from tpcal.report.elements import Chart, HtmlTable, Section, figure, rounded, spoken
from tpcal.report.front_section import cuts_text

if TYPE_CHECKING:
    from tpcal.report.inputs import Given, Material

LOWEST = 1e-4
"""Smallest loss in nats that is drawn; smaller ones are noise and are drawn here."""
FEWEST = 8
"""Smallest number of plans for which a correlation is stated."""
FEW = (
    "Only {} were measured on all samples; run tpcal plan without a budget to search the whole "
    "front, and measure more."
)
Row = tuple[str, str, float, float]


def predictions(material: Material) -> Section | None:
    """The section of the accuracy of predictions; None if no plan was measured."""
    of_groups = [row for given in material.plans for row in _groups(given)]
    of_plans = _plans(material)
    charts = []
    if of_groups:
        charts.append(_groups_chart(material, of_groups))
    if of_plans:
        charts.append(_plans_chart(of_plans))
    if not charts:
        return None
    return Section(
        "prediction",
        "Predicted against measured",
        _lead(of_groups, of_plans),
        "Above the diagonal a plan loses more than single cuts promised, below it less. A sample "
        f"counts with at most 1 nat. Losses under {LOWEST:g} nats are drawn at {LOWEST:g}.",
        tuple(charts),
        (FEW.format(count(len(of_plans), "plan")),) if 0 < len(of_plans) < FEWEST else (),
        side_by_side=True,
    )


def _groups(given: Given) -> list[Row]:
    return [
        (given.name, group, given.predicted[group], value)
        for group, value in given.measured.items()
        if group in given.predicted
    ]


def _plans(material: Material) -> list[Row]:
    predictor = material.predictor
    return [
        (cuts_text(m.point.cuts), "plan", predictor.score(m.point.cuts), m.point.loss)
        for m in material.known
        if m.point.cuts
    ]


def _lead(of_groups: Sequence[Row], of_plans: Sequence[Row]) -> str:
    text = []
    if of_groups:
        plan, group, predicted, measured = max(of_groups, key=lambda r: abs(r[3] - r[2]))
        text.append(
            f"Of the plans' groups, “{group}” of {plan} is furthest off: {spoken(measured)} nats "
            f"measured, {spoken(predicted)} predicted."
        )
    if len(of_plans) >= FEWEST:
        from scipy.stats import spearmanr

        found = spearmanr([r[2] for r in of_plans], [r[3] for r in of_plans]).statistic
        more = sum(r[3] > r[2] for r in of_plans)
        text.append(
            f"Of {count(len(of_plans), 'measured plan')}, {more} lost more than predicted; the "
            f"prediction ranks them with a correlation of {found:.2f}."
        )
    return " ".join(text)


def _groups_chart(material: Material, rows: Sequence[Row]) -> Chart:
    data = [_diagonal()]
    for given in material.plans:
        own = [row for row in rows if row[0] == given.name]
        mark = {"symbol": given.symbol, "color": given.colour, "size": 9, "opacity": 0.85}
        data += [_cloud(given.name, [row[1] for row in own], own, mark)] if own else []
    return Chart(
        "predicted-groups",
        "Groups of the plans",
        "Points, one for each group of each plan: predicted loss against measured loss.",
        figure(data, _square()),
        _table("Loss by plan and group", "group", rows),
    )


def _plans_chart(rows: Sequence[Row]) -> Chart:
    mark = {"symbol": "circle", "color": QUIET, "size": 7, "opacity": 0.8}
    cloud = _cloud("measured by searches", [row[0] for row in rows], rows, mark)
    table = tuple((name, nats(predicted), nats(measured)) for name, _, predicted, measured in rows)
    return Chart(
        "predicted-plans",
        "All measured plans",
        "Points, one for each plan that a search measured: predicted loss against measured loss.",
        figure([_diagonal(), cloud], _square()),
        HtmlTable("Loss of every measured plan", ("plan", "predicted", "measured"), table),
    )


def _cloud(
    name: str, words: Sequence[str], rows: Sequence[Row], marker: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": [rounded(max(row[2], LOWEST)) for row in rows],
        "y": [rounded(max(row[3], LOWEST)) for row in rows],
        "text": [plain(word) for word in words],
        "customdata": [[nats(row[2]), nats(row[3])] for row in rows],
        "marker": {**marker, "line": {"width": 0}},
        "hovertemplate": "%{text}<br>predicted %{customdata[0]}, measured %{customdata[1]}"
        "<extra>%{fullData.name}</extra>",
    }


def _diagonal() -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [LOWEST, 10],
        "y": [LOWEST, 10],
        "line": {"color": FAINT, "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _square() -> dict[str, Any]:
    low = LOWEST / 1.5
    x, y = nats_axis("predicted, nats", low, 2), nats_axis("measured, nats", low, 2)
    return frame(400, xaxis=x, yaxis=y)


def _table(caption: str, what: str, rows: Sequence[Row]) -> HtmlTable:
    text = tuple((name, kind, nats(a), nats(b)) for name, kind, a, b in rows)
    return HtmlTable(caption, ("plan", what, "predicted", "measured"), text, n_text=2)
