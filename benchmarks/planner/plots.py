"""Plots for light and dark pages: no background, middling colours, no dates inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import ArrayLike

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.rcsetup import cycler
from scipy.optimize import isotonic_regression

GREY = "#808a94"
COLOURS = (
    *("#3b8bd6", "#e0663a", "#2fa36b", "#b565c9", "#c29a1c", "#d6588c"),
    *("#3aa6a6", "#8f7a5c", "#7c86d9", "#7ba03b", "#c4717a", "#808a94"),
)
GAP = 0.043
"""Between names beside a panel, as a share of its height."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tpcal",
    "svg.fonttype": "path",
    "font.size": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 9,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}


@contextmanager
def figure(
    path: Path, n_panels: int, width: float = 9.0, height: float = 3.2, *, stacked: bool = False
) -> Iterator[Any]:
    """The panels of a plot, side by side or stacked over one x axis; written at the end."""
    rows, columns = (n_panels, 1) if stacked else (1, n_panels)
    size = (width, height)
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=stacked)
        yield axes.ravel()
        drawn.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(drawn)


def bands(
    panel: Any, x: ArrayLike, curves: Mapping[str, Sequence[ArrayLike]], *, dashed: str = ""
) -> None:
    """For every label the mean of its curves, one a seed, and the range they span.

    Curves whose label ends with ``dashed`` are dashed, in the colours of the others.
    """
    colours: dict[str, str] = {}
    for label, seeds in curves.items():
        base = label.removesuffix(dashed) if dashed else label
        colour = colours.setdefault(base, COLOURS[len(colours) % len(COLOURS)])
        values = np.asarray(seeds, dtype=float)  # [seeds, points]
        line = "--" if dashed and label.endswith(dashed) else "-"
        panel.plot(x, values.mean(axis=0), line, label=label, color=colour, linewidth=1.5)
        panel.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0
        )


def named(panel: Any, ends: Mapping[str, tuple[float, Mapping[str, Any]]]) -> None:
    """Names beside a panel, each at the height where its line ends, moved apart to be read.

    Args:
        panel: With its limits and scales set.
        ends: Name -> its height and what matplotlib is told of its text.
    """
    names = sorted(ends, key=lambda name: ends[name][0])
    points = [(panel.get_xlim()[1], ends[name][0]) for name in names]
    wanted = panel.transAxes.inverted().transform(panel.transData.transform(points))[:, 1]
    steps = np.arange(len(names)) * GAP  # heights less steps must not fall
    heights = steps + np.minimum(isotonic_regression(wanted - steps).x, 1.0 - steps[-1])
    for name, start, height in zip(names, wanted, heights, strict=True):
        look = ends[name][1]
        panel.plot(
            [1.01, 1.06],
            [start, height],
            color=look["color"],
            linewidth=0.6,
            transform=panel.transAxes,
            clip_on=False,
        )
        panel.text(1.07, height, name, va="center", transform=panel.transAxes, **look)
