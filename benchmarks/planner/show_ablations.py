"""The page's table of what each part of a search is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.planner import page, plan_figures
from benchmarks.planner.ablations import BUDGETS, WHOLE, WITHOUT, Ablated, Judged, judged
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work


def run(work: Work, sizes: Sizes, profiles: Path) -> dict[str, str]:
    """Measures, and returns the part of the page."""
    return {"ablations": _table(judged(work, sizes, profiles), sizes)}


def _table(found: Mapping[Ablated, Judged], sizes: Sizes) -> str:
    headings = ["searched without"]
    headings += [f"{target:.2f}: {what}" for target in BUDGETS for what in ("nats", "right")]
    rows = []
    for without in WITHOUT:
        cells = [without]
        for target in BUDGETS:
            own = [Ablated(seed, target, without) for seed in sizes.study_seeds]
            whole = [Ablated(seed, target, WHOLE) for seed in sizes.study_seeds]
            for figure, form in ((_objective, ".3f"), (_accuracy, ".1%")):
                values = [figure(found[run], run, sizes) for run in own]
                base = [figure(found[run], run, sizes) for run in whole]
                cells.append(_cell(values, base, form, without == WHOLE))
        rows.append(cells)
    return page.table(headings, rows)


def _cell(values: Sequence[float], base: Sequence[float], form: str, whole: bool) -> str:
    """The mean over seeds; beside it the smallest and largest difference from the whole search."""
    mean = f"{np.mean(values):{form}}"
    if whole:
        return f"{mean} ({min(values):{form}} to {max(values):{form}})"
    more = np.subtract(values, base)
    return f"{mean} ({more.min():+{form}} to {more.max():+{form}})"


def _objective(plan: Judged, run: Ablated, sizes: Sizes) -> float:
    return plan_figures.objective(plan.losses, run.seed, sizes)


def _accuracy(plan: Judged, run: Ablated, sizes: Sizes) -> float:
    return plan_figures.accuracy(plan.texts, sizes)
