"""The page's table of other planners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.planner import page
from benchmarks.planner.comparison import OURS
from benchmarks.planner.found import Folders
from benchmarks.planner.other_planners import BUDGETS, PLANNERS, Judged, Run, judged
from benchmarks.planner.plan_figures import accuracy, objective
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work


def run(work: Work, sizes: Sizes, folders: Folders) -> dict[str, str]:
    """Measures, and returns the part of the page."""
    return {"other-planners": _table(judged(work, sizes, folders), sizes)}


def _table(results: Mapping[Run, Judged], sizes: Sizes) -> str:
    headings = ["planner", *(f"{b:.2f}: {what}" for b in BUDGETS for what in ("nats", "right"))]
    rows = []
    for name in (OURS, *PLANNERS):
        cells = [name]
        for target in BUDGETS:
            runs = [Run(name, target, seed) for seed in sizes.seeds]
            cells.append(
                _spread([objective(results[r].losses, r.seed, sizes) for r in runs], ".3f")
            )
            cells.append(_spread([accuracy(results[r].texts, sizes) for r in runs], ".1%"))
        passes = np.mean([found.passes for r, found in results.items() if r.planner == name])
        rows.append([*cells, f"{passes:,.0f}"])
    return page.table([*headings, "passes"], rows)


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and range over seeds."""
    mean, low, high = (f"{v:{form}}" for v in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"
