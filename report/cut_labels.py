"""Labels of the cuts in the chart of schedules, at places that are free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpcal.report.chart_style import plain
from tpcal.report.label_places import LETTER, Box, overlap

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Cut
    from tpcal.report.inputs import Given

FIRST, LOW, HIGH = -0.7, -0.09, 1.06
"""Ends of the axes, in layers and in shares of all tokens."""
WIDTH, HEIGHT = 880, 270
"""Size of the plot area in pixels on a wide screen; narrow screens show no labels."""
LINE, TEXT = 1.5, 14.0
"""Half the width of a line and the height of a label, in pixels."""
AFTER = 5.0
"""Distance from a step to its label, in pixels."""


def labels(
    plans: Sequence[Given], schedules: Mapping[str, list[int]], n_tokens: int
) -> list[dict[str, Any]]:
    """Labels such as `balanced 36` beside each cut with a free place above or below its line.

    Args:
        plans: Plans in the chart.
        schedules: Tokens that enter each layer, by name of the plan.
        n_tokens: Tokens before the first cut.
    """
    boxes = [box for own in schedules.values() for box in _lines(own, n_tokens)]
    found = []
    for given in plans:
        own = schedules[given.name]
        for cut in given.plan.cuts:
            text = _text(cut, own[cut.layer])
            x, y = _pixels(cut.layer - 0.5, own[cut.layer], len(own), n_tokens)
            for side, bottom in (("bottom", y + 2 * LINE), ("top", y - 2 * LINE - TEXT)):
                right = x + AFTER + LETTER * len(text)
                box = (x + AFTER, bottom, right, bottom + TEXT)
                if right <= WIDTH and not any(overlap(box, other) for other in boxes):
                    boxes.append(box)
                    found.append(_annotation(given, cut, own[cut.layer], text, side))
                    break
    return found


def _text(cut: Cut, n_left: int) -> str:
    name = f"{cut.selector} {n_left}" if cut.selector else "drop all"
    return name + " *" * (cut.condition is not None)


def _lines(schedule: Sequence[int], n_tokens: int) -> Iterator[Box]:
    """The boxes of every level and every step of a line."""
    before = n_tokens
    for layer, n in enumerate(schedule):
        x, y = _pixels(layer - 0.5, n, len(schedule), n_tokens)
        end, top = _pixels(layer + 0.5, before, len(schedule), n_tokens)
        yield x - LINE, y - LINE, end + LINE, y + LINE
        if n != before:
            yield x - LINE, y - LINE, x + LINE, top + LINE
        before = n


def _pixels(layer: float, n: int, n_layers: int, n_tokens: int) -> tuple[float, float]:
    x = (layer - FIRST) / (n_layers - 0.5 - FIRST)
    return x * WIDTH, (n / max(n_tokens, 1) - LOW) / (HIGH - LOW) * HEIGHT


def _annotation(given: Given, cut: Cut, n_left: int, text: str, side: str) -> dict[str, Any]:
    return {
        "name": "wide",
        "x": cut.layer - 0.5,
        "xshift": AFTER,
        "y": n_left,
        "text": plain(text),
        "showarrow": False,
        "xanchor": "left",
        "yanchor": side,
        "font": {"size": 11, "color": given.colour},
    }
