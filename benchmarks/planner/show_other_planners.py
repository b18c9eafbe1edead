"""The page's table of other planners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from benchmarks.planner import page
from benchmarks.planner.comparison import OURS
from benchmarks.planner.found import Folders
from benchmarks.planner.other_planners import BUDGETS, PLANNERS, Judged, Pieces, Run, judged
from benchmarks.planner.plan_figures import accuracy, by_group
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work

NONE = "–"
"""Stands in a cell without a measurement."""


def run(work: Work, sizes: Sizes, folders: Folders, pieces: Pieces) -> dict[str, str]:
    """Measures, and returns the part of the page."""
    return {"other-planners": table(judged(work, sizes, folders, pieces), sizes)}


def table(results: Mapping[Run, Judged], sizes: Sizes) -> str:
    """A row for each planner, and which budgets and seeds have been measured."""
    kinds = ("nats", "worst group", "right")
    headings = ["planner", *(f"{budget:.2f}: {kind}" for budget in BUDGETS for kind in kinds)]
    rows = []
    for name in (OURS, *PLANNERS):
        own = {run: found for run, found in results.items() if run.planner == name}
        cells = [name]
        for target in BUDGETS:
            runs = [run for run in own if run.target == target]
            lost = [by_group(own[r].losses, r.seed, sizes) for r in runs]
            cells.append(_spread([float(means.mean()) for means in lost], ".3f"))
            cells.append(_spread([float(means.max()) for means in lost], ".3f"))
            cells.append(_spread([accuracy(own[r].texts, sizes) for r in runs], ".1%"))
        passes = f"{np.mean([found.passes for found in own.values()]):,.0f}" if own else NONE
        rows.append([*cells, passes])
    return f"{page.table([*headings, 'passes'], rows)}\n{_measured(results, sizes)}\n"


def _measured(results: Mapping[Run, Judged], sizes: Sizes) -> str:
    """Which pieces the table holds, and which nobody has measured yet."""
    found, lacking = [], []
    for target, seed in product(BUDGETS, sizes.study_seeds):
        piece = f"{target:.2f} with seed {seed}"
        without = [name for name in (OURS, *PLANNERS) if Run(name, target, seed) not in results]
        if len(without) > len(PLANNERS):
            lacking.append(piece)
        else:
            found.append(f"{piece} (without {', '.join(without)})" if without else piece)
    parts = [f"Measured: {'; '.join(found) or 'nothing yet'}."]
    parts += [f"Not measured: {'; '.join(lacking)}."] if lacking else []
    return " ".join(parts)


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and range over seeds."""
    if not values:
        return NONE
    mean, low, high = (f"{v:{form}}" for v in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
