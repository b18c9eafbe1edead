"""The page's table of what each part of a search is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import page, world
from benchmarks.planner.ablations import BUDGETS, WHOLE, WITHOUT, Ablated, Judged, judged
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from benchmarks.planner.work import Work
from tpcal.calibrate.evaluation.metrics import is_right
from tpcal.planner.prediction.objective import Objective

Floats = NDArray[np.float64]


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
            own = [Ablated(seed, target, without) for seed in sizes.seeds]
            whole = [Ablated(seed, target, WHOLE) for seed in sizes.seeds]
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
    """What a search minimises, on samples that it has not seen."""
    where = world.CALIBRATION, sizes.judged, run.seed + ELSEWHERE
    groups = world.samples(*where).groups
    return float(Objective().values(world.by_group(plan.losses, *where), groups))


def _accuracy(plan: Judged, run: Ablated, sizes: Sizes) -> float:
    """Share of right answers to the questions of the test split."""
    drawn = world.samples(world.TEST, sizes.held_out, 0)
    asked = zip(plan.texts, drawn, strict=True)
    return float(np.mean([is_right(text, str(sample.answer)) for text, sample in asked]))
