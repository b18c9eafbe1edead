"""Colours, symbols and layouts of the charts of the report, for a light and a dark theme.

Charts use the colours of the light theme; page.js replaces them in the dark theme. The hues are
safe for colour-blind readers and follow Okabe and Ito (2008), darkened if text of that colour
would be hard to read on white. No chart distinguishes things by hue alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

INK, QUIET, FAINT, GRID, PAPER = "#1b1f24", "#59616b", "#aeb6c0", "#e4e8ec", "#ffffff"
BLUE, GREEN, PURPLE, AMBER, RED, SKY = (
    *("#0067a8", "#007a5a", "#9a3f82", "#a86a00", "#c64f00", "#2a8fc9"),
)
DARK: Mapping[str, str] = MappingProxyType(
    {
        INK: "#e8eaed",
        QUIET: "#a0a8b3",
        FAINT: "#5d6672",
        GRID: "#2b3037",
        PAPER: "#14171b",
        BLUE: "#5fb6f2",
        GREEN: "#35c79c",
        PURPLE: "#e199cd",
        AMBER: "#f0b445",
        RED: "#ff8b4a",
        SKY: "#8fd0f5",
        "#fbf7f1": "#1e2023",
        "#f8e1c4": "#40301f",
        "#f0b478": "#7d471e",
        "#b24c1a": "#dc8a45",
        "#6b2107": "#ffdcae",
    }
)
"""Colour of the dark theme for each colour of the light theme."""
HEAT = [[i / 4, c] for i, c in enumerate(list(DARK)[-5:])]
"""Colour scale of losses: one hue with monotone lightness."""
PLANS = (
    (BLUE, "solid", "circle"),
    (GREEN, "dash", "square"),
    (PURPLE, "dot", "diamond"),
    (AMBER, "dashdot", "triangle-up"),
    (SKY, "longdash", "triangle-down"),
    (RED, "longdashdot", "cross"),
)
"""(colour, dash, symbol) of each plan, equal in all charts and repeated for further plans."""
GROUPS = (RED, PURPLE, AMBER)
"""Colours of the groups with the largest losses; other groups are `FAINT`."""
SYMBOLS = ("circle", "square", "diamond")


def plain(text: object) -> str:
    """Escaped text for plotly, which interprets some HTML in names and titles."""
    return html.escape(str(text), quote=False)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a hairline grid."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": GRID,
        "linecolor": FAINT,
        "tickcolor": FAINT,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        **more,
    }


def nats_axis(
    title: str = "loss, nats per answer token",
    low: float = 1e-4,
    high: float = 5.0,
    safe: float | None = None,
) -> dict[str, Any]:
    """A logarithmic axis of losses, without the noise below ``low``.

    Its tick at ``safe`` is labelled as safe, at a place that no line can cover.
    """
    values = [10.0**i for i in range(-6, 3)]
    return axis(
        title,
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=values,
        ticktext=["safe: " * (value == safe) + f"{value:g}" for value in values],
    )


def top_of(losses: Iterable[float | None], least: float = 5.0) -> float:
    """The upper end of a `nats_axis` that shows all these losses, at least ``least``."""
    return max(least, 1.3 * max((loss for loss in losses if loss is not None), default=0.0))


def layer_axis(
    n_layers: int, title: str = "cut just before layer", first: float = -0.5
) -> dict[str, Any]:
    """An axis of decoder layers with about 16 ticks."""
    step = max(1, round(n_layers / 16))
    return axis(title, range=[first, n_layers - 0.5], tick0=0, dtick=step, showgrid=False)


def frame(height: int, **more: Any) -> dict[str, Any]:
    """A layout without decoration; `page.js` adds what depends on the screen."""
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 13},
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": QUIET, "font": {"color": INK}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        "dragmode": False,
        **more,
    }
