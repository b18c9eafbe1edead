"""README's picture: quality against cost for tpcal, the published methods and the controls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from benchmarks.planner import plots
from benchmarks.planner.comparison import BASELINES, OURS, SINGLE, Answered, Comparison
from benchmarks.planner.published import SCHEDULES
from benchmarks.planner.sizes import BUDGETS

Judge = Callable[[NDArray[np.bool_]], float]
PUBLISHED = tuple(method for method in (*SCHEDULES, *SINGLE) if method not in BASELINES)
BLUE, *OTHERS = (*plots.COLOURS[:-1], "#c98f6a")  # grey is for controls
TICKS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def draw(found: Comparison, path: Path) -> None:
    """Two panels, all questions and the worst group, with every line named where it ends."""
    judges: dict[str, Judge] = {
        "all questions": lambda right: float(right.mean()),
        "the worst group of questions": found.worst,
    }
    with plots.figure(path, len(judges), width=10.0, height=5.2) as panels:
        for panel, (title, judge) in zip(panels, judges.items(), strict=True):
            panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
            _draw(panel, found, judge)
        panels[0].set_ylabel("right answers")


def _draw(panel: Any, found: Comparison, judge: Judge) -> None:
    unpruned = judge(found.unpruned[None])
    panel.axhline(unpruned, color=plots.GREY, linewidth=1.0)
    ends = {"unpruned": (unpruned, {"color": plots.GREY})}
    lowest = unpruned
    for method in (*BASELINES, *PUBLISHED, OURS):
        own = [a for a in found.answered if a.method == method]
        if not own:  # the model cannot answer in this way
            continue
        values = [judge(a.right) for a in own]
        look = _look(method)
        panel.plot([a.target for a in own], values, clip_on=False, **look)
        ends[method] = values[-1], _of_name(method)
        lowest = min(lowest, *values)
        if method == OURS:
            _shade(panel, own, judge)
    panel.set_yscale("function", functions=(_up, lambda height: 1 - 10**-height))
    panel.set_ylim(max(0.0, lowest - 0.05), 1 - 0.85 * (1 - unpruned))
    panel.set_yticks([tick for tick in TICKS if tick <= unpruned])
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlim(BUDGETS[0] - 0.02, BUDGETS[-1])
    panel.set_xticks(BUDGETS)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_xlabel("visual tokens that a layer gets, mean of all layers")
    plots.named(panel, ends)


def _up(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Height of an accuracy: equal steps are equal factors of wrong answers."""
    wrong: NDArray[np.float64] = np.maximum(1 - accuracy, 1e-6)
    return -np.log10(wrong)


def _shade(panel: Any, own: Iterable[Answered], judge: Judge) -> None:
    """The range of tpcal's seeds."""
    seeds = np.array([[judge(right[None]) for right in a.right] for a in own])
    panel.fill_between(
        [a.target for a in own], seeds.min(axis=1), seeds.max(axis=1), color=BLUE, alpha=0.22, lw=0
    )


def _look(method: str) -> dict[str, Any]:
    """Style of a line: tpcal's stands out, and the controls step back."""
    if method == OURS:
        return {"color": BLUE, "linewidth": 3.0, "marker": "o"}
    if method in BASELINES:
        return {"color": plots.GREY, "linewidth": 1.0, "linestyle": "--", "marker": "."}
    return {"color": _colour(method), "linewidth": 1.2, "marker": "."}


def _of_name(method: str) -> dict[str, Any]:
    if method == OURS:
        return {"color": BLUE, "fontweight": "bold", "fontsize": 11}
    if method in BASELINES:
        return {"color": plots.GREY, "fontstyle": "italic"}
    return {"color": _colour(method)}


def _colour(method: str) -> str:
    """One colour a method, shared by the variants of it."""
    methods = list(dict.fromkeys(name.split(",")[0].split(" ")[0] for name in PUBLISHED))
    return OTHERS[methods.index(method.split(",")[0].split(" ")[0])]
