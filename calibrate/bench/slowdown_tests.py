"""Tests of whether a plan is slower than the unpruned model, beyond noise and by a margin.

The two times of a repeat are taken one after the other, so each repeat gives one ratio. A plan
counts as slower if the one-sided interval of the ratios' median lies above 1 + `MARGIN`. The
interval is that of the sign test, which assumes only that repeats are independent, whatever the
distribution of the noise. All comparisons of a run share `ALARM` (Bonferroni): a run calls a plan
that is as fast as the unpruned model slower with a chance of at most 1 in 100, and in practice far
less, because the plan would have to seem slower by the margin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import quantile_test

from tpcal.calibrate.bench.ratios import MEASURES, Cell, GenerationRun, Measure, digits_of
from tpcal.plans.errors import UsageError

ALARM = 0.01
"""Largest share of runs in which a plan that costs no time is called slower."""
MARGIN = 0.02
"""Times that are longer by less than this share count as equal."""


def n_repeats_needed(n_comparisons: int) -> int:
    """Least number of repeats with which a comparison can show that a plan is slower.

    Example:
        >>> from tpcal.calibrate.bench.slowdown_tests import n_repeats_needed
        >>> n_repeats_needed(n_comparisons=3)
        9
    """
    # If all n ratios are above the margin, the sign test's p-value is 2**-n. With m comparisons
    # it must be at most ALARM / m, so n >= log2(m / ALARM).
    return int(np.ceil(np.log2(n_comparisons / ALARM)))


def check_repeats(n_repeats: int, n_cells: int, n_plans: int) -> None:
    """Checks that the number of repeats can tell a slower plan from noise.

    Raises:
        UsageError: There are too few repeats, whatever they show.
    """
    n_comparisons = n_cells * n_plans * len(MEASURES)
    needed = n_repeats_needed(n_comparisons)
    if n_repeats < needed:
        raise UsageError(
            f"--repeats must be at least {needed} for {n_comparisons} comparisons with the "
            f"unpruned model, or none could be told from noise; got {n_repeats}. Ask for more "
            "repeats, or for fewer cells."
        )


def slower(cells: Sequence[Cell]) -> list[list[list[str]]]:
    """Names of the measures in which a plan is slower, for each plan of each cell."""
    n_comparisons = len(MEASURES) * sum(len(cell.plans) for cell in cells)
    return [
        [
            [m.name for m in MEASURES if _is_slower(_slowdowns(m, run, cell), n_comparisons)]
            for run in cell.plans
        ]
        for cell in cells
    ]


def _slowdowns(measure: Measure, run: GenerationRun, cell: Cell) -> list[float]:
    """[n] ratios of times, plan to unpruned; a throughput counts by its reciprocal."""
    ratios = run.ratios(measure.of, cell.unpruned)
    return [1 / ratio for ratio in ratios] if measure.rises else ratios


def _is_slower(slowdowns: Sequence[float], n_comparisons: int) -> bool:
    # Sign test of the median: were it at most 1 + MARGIN, each ratio would be above that with a
    # chance of at most 1/2. The p-value is the chance that as many are above as were seen.
    test = quantile_test(slowdowns, q=1 + MARGIN, p=0.5, alternative="greater")
    return bool(test.pvalue <= ALARM / n_comparisons)


def hidden(cells: Sequence[Cell]) -> tuple[float, str]:
    """The largest slowdown that noise may hide (0.12 for 12 %), and where, in words.

    It is the largest upper end of the same intervals. If there are too few repeats for an
    interval, its largest ratio counts.
    """
    comparisons = [(m, run, cell) for cell in cells for run in cell.plans for m in MEASURES]
    worst, where = 0.0, ""
    for measure, run, cell in comparisons:
        slowdowns = _slowdowns(measure, run, cell)
        test = quantile_test(slowdowns, q=1.0, p=0.5, alternative="less")
        high = test.confidence_interval(1 - ALARM / len(comparisons)).high
        high = max(slowdowns) if np.isnan(high) else float(high)
        if high - 1 > worst:
            worst, where = high - 1, f"{measure.says} of {run.name}, {cell.title}"
    return worst, where


def sentences(cells: Sequence[Cell], found: Sequence[Sequence[Sequence[str]]]) -> list[str]:
    """A sentence for each plan that is slower in some cell: where, and by how much.

    Args:
        cells: The cells.
        found: The result of `slower`.
    """
    said = []
    for at, run in enumerate(cells[0].plans if cells else ()):
        places = [
            f"{cell.title}: {_by_how_much(names[at], cell.plans[at], cell)}"
            for cell, names in zip(cells, found, strict=True)
            if names[at]
        ]
        if places:
            of = f"{len(places)} of {len(cells)} cells" if len(cells) > 1 else "the only cell"
            said.append(f"{run.name} is slower than unpruned in {of}: {'; '.join(places)}.")
    return said


def _by_how_much(names: Sequence[str], run: GenerationRun, cell: Cell) -> str:
    parts = []
    for measure in MEASURES:
        if measure.name in names:
            mine, theirs = (r.spread(measure.of).median for r in (run, cell.unpruned))
            change = np.median(run.ratios(measure.of, cell.unpruned)) - 1
            parts.append(
                f"{measure.says} {mine:.{digits_of(mine)}f} {measure.unit}, unpruned "
                f"{theirs:.{digits_of(theirs)}f} "
                f"({change:+.0%})".replace("%", " %")
            )
    return ", ".join(parts)
