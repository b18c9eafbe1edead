"""The Pareto front as a chart and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.plans.formats import count
from tpcal.views.lists import _short_cut
from tpcal.views.tables import CUT, QUIET, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.planner.prediction.objective import Objective
    from tpcal.planner.search.front import Point
    from tpcal.plans.plan_records import Cut

WIDTH, HEIGHT = 55, 12


def front_view(
    points: Sequence[Point],
    title: str,
    objective: Objective,
    names: Mapping[tuple[Cut, ...], str] | None = None,
) -> RenderableType:
    """The front as a chart of loss against cost, and as a table.

    Args:
        points: Plans of the front, the cheapest first.
        title: Name of the profile.
        objective: What the losses of the plans are.
        names: Names of the published schedules among them, by their cuts.
    """
    kind = "measured" if any(point.measured for point in points) else "predicted"
    names = names or {}
    table = table_of(
        Right("average keep"),
        Right("loss"),
        Right("worst group"),
        "cuts as layer:keep",
        *(["published"] if names else []),
    )
    for point in points:
        table.add_row(
            f"{point.layer_average_keep:.4f}",
            f"{point.loss:.4f}",
            "–" if math.isnan(point.worst) else f"{point.worst:.4f}",
            ", ".join(map(_short_cut, point.cuts)) or "none",
            *([names.get(point.cuts, "")] if names else []),
        )
    head = heading(f"{title} · {count(len(points), 'plan')} on the front, {kind}")
    what = Text(f"Loss in nats: {objective.text}", style=QUIET)
    return Group(head, *chart(points), what, table)


def chart(points: Sequence[Point]) -> list[RenderableType]:
    """A chart of the square root of the loss against cost; empty for fewer than two plans."""
    most = max((point.loss for point in points), default=0.0)
    if len(points) < 2 or most <= 0:
        return []
    rows = [[" "] * (WIDTH + 1) for _ in range(HEIGHT + 1)]
    for point in points:
        height = round(HEIGHT * math.sqrt(max(point.loss, 0.0) / most))
        rows[HEIGHT - height][round(WIDTH * point.layer_average_keep)] = "●"
    lines: list[RenderableType] = []
    for place, row in enumerate(rows):
        value = most * ((HEIGHT - place) / HEIGHT) ** 2
        label = f"{value:7.3f}" if place % 3 == 0 else " " * 7
        lines.append(Text(f"{label} │").append("".join(row).rstrip(), style=CUT))
    lines.append(Text(f"{' ' * 8}└{'─' * (WIDTH + 1)}"))
    ticks = "".join(f"{x:<{WIDTH // 5}g}" for x in (0, 0.2, 0.4, 0.6, 0.8))
    lines.append(Text(f"{' ' * 9}{ticks}1  keep"))
    return [*lines, Text()]


def front_data(
    points: Sequence[Point], names: Mapping[tuple[Cut, ...], str]
) -> list[dict[str, Any]]:
    """The front as plain data, with the cheapest plan first."""
    from dataclasses import asdict

    return [
        {
            "layer_average_keep": round(point.layer_average_keep, 6),
            "loss": round(point.loss, 6),
            "worst_group_loss": None if math.isnan(point.worst) else round(point.worst, 6),
            "measured": point.measured,
            "published": names.get(point.cuts),
            "cuts": [asdict(cut) for cut in point.cuts],
        }
        for point in points
    ]


def stored_line(measured: bool, n_measured: int) -> Text:
    """A line that states whether the loss of a stored plan is measured or predicted."""
    loss = "measured before" if measured else "predicted, not measured"
    return Text(
        f"\nChosen by {n_measured} plans measured for other budgets; its loss is {loss}. "
        "To measure plans of this budget, add --trials 60."
    )
