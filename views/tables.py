"""Parts of the views: styles, headings, bars, sparklines and tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 28
MAX_ROWS = 40
TITLE = "bold"
QUIET = "bright_black"
CUT = "cyan"
WORST = "yellow"


def heading(text: str) -> Text:
    """A heading line."""
    return Text(text, style=TITLE)


def bar(part: float, width: int = BAR_WIDTH) -> str:
    """A horizontal bar of ``part`` of the width, in eighths of a character."""
    eighths = round(min(max(part, 0.0), 1.0) * width * 8)
    if part > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()


def sparkline(values: Sequence[float], top: float) -> str:
    """One character per value, as tall as the square root of its share of ``top``."""
    if top <= 0:
        return "▁" * len(values)
    heights = [min(max(v, 0.0) / top, 1.0) ** 0.5 for v in values]
    return "".join("▁▂▃▄▅▆▇█"[round(height * 7)] for height in heights)


class Right(str):
    """A column title whose column is aligned to the right."""


def table_of(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    for title in titles:
        right = isinstance(title, Right)
        table.add_column(title, justify="right" if right else "left", no_wrap=right)
    return table


def spread(items: Sequence[float], n: int) -> list[float]:
    """At most n of the items at even distances, including both ends."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]
