"""Whether a plan is slower than the unpruned model: beyond noise, and by enough to matter.

A ratio is taken of the two times of each repeat, as they were taken one after the other. A plan
counts as slower where the one-sided interval of the ratios' median lies above 1 + `MARGIN`. The
interval is that of the sign test: it rests on nothing but repeats that do not depend on each
other, whatever the noise looks like. All comparisons of a run share `ALARM` (Bonferroni): a plan
that is as fast as the unpruned model is called slower in at most 1 of 100 runs, and as it would
have to seem slower by the margin, in far fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import quantile_test

from tpcal.calibrate.bench.ratios import MEASURES, Cell, GenerationRun, Measure, digits_of
from tpcal.plans.errors import UsageError

ALARM = 0.01
"""Most runs in which a plan that costs no time is called slower."""
MARGIN = 0.02
"""Times longer by less count as equal."""


def n_repeats_needed(n_comparisons: int) -> int:
    """Fewest repeats of which all together can show that one of the comparisons is no chance."""
    return int(np.ceil(np.log2(n_comparisons / ALARM)))


def check_repeats(n_repeats: int, n_cells: int, n_plans: int) -> None:
    """Nothing, where so many repeats can tell a slower plan from noise.

    Raises:
        UsageError: They cannot, whatever they show.
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
    """Names of the measures in which plans are slower: for each cell, for each of its plans."""
    n_comparisons = len(MEASURES) * sum(len(cell.plans) for cell in cells)
    return [
        [
            [m.name for m in MEASURES if _is_slower(_slowdowns(m, run, cell), n_comparisons)]
            for run in cell.plans
        ]
        for cell in cells
    ]


def _slowdowns(measure: Measure, run: GenerationRun, cell: Cell) -> list[float]:
    """[n] ratios of times, plan to unpruned."""
    ratios = run.ratios(measure.of, cell.unpruned)
    return [1 / ratio for ratio in ratios] if measure.rises else ratios


def _is_slower(slowdowns: Sequence[float], n_comparisons: int) -> bool:
    test = quantile_test(slowdowns, q=1 + MARGIN, p=0.5, alternative="greater")
    return bool(test.pvalue <= ALARM / n_comparisons)


def hidden(cells: Sequence[Cell]) -> tuple[float, str]:
    """The largest slowdown that noise may hide, 0.12 for 12 %, and where: words for people.

    The upper ends of the same intervals; where there are too few repeats for one, the largest
    ratio of all.
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
    """One for each plan that is slower somewhere: where, and by how much.

    Args:
        cells: The cells.
        found: As `slower`.
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
