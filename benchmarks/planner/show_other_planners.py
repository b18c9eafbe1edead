"""The page's table of other planners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.planner import page, world
from benchmarks.planner.comparison import OURS
from benchmarks.planner.found import Folders
from benchmarks.planner.other_planners import BUDGETS, PLANNERS, Judged, Run, judged
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from benchmarks.planner.work import Work
from tpcal.calibrate.evaluation.metrics import is_right
from tpcal.planner.prediction.objective import Objective


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
            cells.append(_spread([_objective(results[r], r, sizes) for r in runs], ".3f"))
            cells.append(_spread([_accuracy(results[r], sizes) for r in runs], ".1%"))
        passes = np.mean([found.passes for r, found in results.items() if r.planner == name])
        rows.append([*cells, f"{passes:,.0f}"])
    return page.table([*headings, "passes"], rows)


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and range over seeds."""
    mean, low, high = (f"{v:{form}}" for v in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _objective(found: Judged, run: Run, sizes: Sizes) -> float:
    groups = world.by_group(found.losses, world.CALIBRATION, sizes.judged, run.seed + ELSEWHERE)
    names = world.samples(world.CALIBRATION, sizes.judged, run.seed + ELSEWHERE).groups
    return float(Objective().values(groups, names))


def _accuracy(found: Judged, sizes: Sizes) -> float:
    asked = world.samples(world.TEST, sizes.held_out, 0)
    pairs = zip(found.texts, asked, strict=True)
    return float(np.mean([is_right(given, str(sample.answer)) for given, sample in pairs]))
