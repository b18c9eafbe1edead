"""Formats of numbers and tables: bars, percentages and units."""

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


def count(n: int, what: str) -> str:
    """`1 cut`, `2 cuts`."""
    return f"{n} {what}" if n == 1 else f"{n:,} {what}s"


def arrows(counts: Sequence[int]) -> str:
    """`72 → 12 → 0`."""
    return " → ".join(map(str, counts)) or "no cut"


def percent(value: float) -> str:
    """A percentage without decimals, or with one below ten."""
    scaled = 100 * value
    return f"{scaled:.0f} %" if abs(scaled) >= 9.95 or round(scaled, 1) == 0 else f"{scaled:.1f} %"


def share(value: float) -> str:
    """A fraction as a percentage, or a dash for nan."""
    return "–" if value != value else percent(value)


def nats(value: float) -> str:
    """A loss in nats with four decimals, or one from 10 nats on; a dash for nan."""
    if value != value:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def si(value: float) -> str:
    """1 234 000 -> `1.23 M`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000 or unit == "P":
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    raise AssertionError


def binary(n_bytes: float) -> str:
    """A number of bytes in B, KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.{4 if n_bytes >= 1000 else 3}g} {unit}"
        n_bytes /= 1024
    raise AssertionError


def milliseconds(value: float) -> str:
    """`12.3 ms`."""
    return f"{value:.3g} ms"


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
