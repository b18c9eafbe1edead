"""The Pareto front as a chart and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from tpcal.views.lists import _short_cut
from tpcal.views.words import Right, bar, count, heading, table_of

if TYPE_CHECKING:
    from tpcal.planner.front import Point


def front_view(points: Sequence[Point], title: str) -> RenderableType:
    """The plans that nothing beats: cost, loss as a bar, cuts."""
    kind = "measured" if any(point.measured for point in points) else "predicted"
    table = table_of(
        Right("average keep"), Right("loss in nats"), "of the worst group", "cuts as layer:keep"
    )
    most = max((point.loss for point in points), default=0.0)
    for point in points:
        table.add_row(
            f"{point.layer_average_keep:.4f}",
            f"{point.loss:.4f}",
            bar(math.sqrt(point.loss / most) if most else 0.0, 16),
            ", ".join(map(_short_cut, point.cuts)) or "none",
        )
    return Group(heading(f"{title} · {count(len(points), 'plan')} on the front, {kind}"), table)
