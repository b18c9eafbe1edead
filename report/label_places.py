"""Placement of names beside points so that no name covers another."""

from __future__ import annotations

import math
from collections.abc import Sequence

Spot = tuple[float, float]
Box = tuple[float, float, float, float]
LETTER, HALF, GAP = 6.2, 6.0, 7.0
"""Width of a letter, half the height of a line, and distance to a point, in pixels."""


def placed(
    names: Sequence[str],
    spots: Sequence[Spot],
    taken: Sequence[Spot],
    width: float,
    height: float = math.inf,
) -> list[str | None]:
    """The plotly text position of each name; None if every position would cover something.

    Args:
        names: Names of the points.
        spots: Points in pixels, with y upwards.
        taken: Further points that no name may cover.
        width: Width of the chart in pixels.
        height: Height of the chart in pixels.
    """
    points = [*spots, *taken]
    boxes = [(x - HALF, y - HALF, x + HALF, y + HALF) for x, y in points]
    found: list[str | None] = []
    # Place the names greedily: each name takes its first side that is inside the chart and covers
    # neither a point nor a name that was placed before.
    for i, name in enumerate(names):
        others = [*boxes[:i], *boxes[i + 1 :]]
        free = [
            (side, box)
            for side, box in _sides(*points[i], LETTER * len(name)).items()
            if box[0] >= 0
            and box[2] <= width
            and box[3] <= height
            and not any(overlap(box, b) for b in others)
        ]
        found.append(free[0][0] if free else None)
        boxes += [box for _, box in free[:1]]
    return found


def _sides(x: float, y: float, width: float) -> dict[str, Box]:
    half = width / 2
    return {
        "middle right": (x + GAP, y - HALF, x + GAP + width, y + HALF),
        "middle left": (x - GAP - width, y - HALF, x - GAP, y + HALF),
        "top center": (x - half, y + HALF, x + half, y + 3 * HALF),
        "bottom center": (x - half, y - 3 * HALF, x + half, y - HALF),
    }


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share more than an edge."""
    beside = one[2] <= other[0] or other[2] <= one[0]
    return not beside and one[1] < other[3] and other[1] < one[3]
