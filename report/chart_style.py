"""Colours, symbols and frames of the report's charts; both themes, and safe for the colour-blind.

Charts are written in the light theme's colours; in the dark one, page.js puts each colour's
partner in its place. Hues follow Okabe and Ito (2008), darkened where text of that colour would
be hard to read on white; no chart tells things apart by hue alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
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
"""What stands for each colour of the light theme in the dark one."""
HEAT = [[i / 4, c] for i, c in enumerate(list(DARK)[-5:])]
"""Colour scale of losses: one hue, its lightness rising or falling throughout."""
PLANS = (
    (BLUE, "solid", "circle"),
    (GREEN, "dash", "square"),
    (PURPLE, "dot", "diamond"),
    (AMBER, "dashdot", "triangle-up"),
    (SKY, "longdash", "triangle-down"),
    (RED, "longdashdot", "cross"),
)
"""(colour, dash, symbol) of each plan, the same in every chart; further plans start again."""
GROUPS = (RED, PURPLE, AMBER)
"""Of the groups that lose most; the others are `FAINT`."""
SYMBOLS = ("circle", "square", "diamond")


def plain(text: object) -> str:
    """Text that a chart shows as it is: plotly reads a little HTML in names and titles."""
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
    """A logarithmic axis of losses; what lies below ``low`` is noise, and leaves the chart.

    Its tick at ``safe`` says so, where nothing that is drawn can cover the word.
    """
    values = [10.0**i for i in range(-6, 3)]
    return axis(
        title,
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=values,
        ticktext=["safe: " * (value == safe) + f"{value:g}" for value in values],
    )


def layer_axis(
    n_layers: int, title: str = "cut just before layer", first: float = -0.5
) -> dict[str, Any]:
    """An axis of decoder layers, each a tick where there is room."""
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
