"""The page's tables of answers at equal layer averages, and what they prove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import page, quality
from benchmarks.planner.comparison import (
    BASELINES,
    DOWNSIZED,
    OURS,
    SINGLE,
    Answered,
    Comparison,
    comparison,
)
from benchmarks.planner.found import Folders
from benchmarks.planner.intervals import (
    NOISE,
    Interval,
    overall_difference,
    p_paired,
    worst_difference,
)
from benchmarks.planner.page import Pictures
from benchmarks.planner.published import SCHEDULES
from benchmarks.planner.sizes import BUDGETS, Sizes
from benchmarks.planner.work import Work
from tpcal.calibrate.evaluation.intervals import share
from tpcal.calibrate.evaluation.paired_tests import holm
from tpcal.calibrate.evaluation.shares import Share
from tpcal.plans.local_paths import EMBEDDED
from tpcal.plans.plan_records import Cut

METHODS = (OURS, *SCHEDULES, *SINGLE, DOWNSIZED)


@dataclass(frozen=True)
class Beside:
    """How much better tpcal's plan is than another method, question by question."""

    overall: Interval
    worst: Interval
    p: float
    """p-value of no difference in all answers, adjusted for all comparisons."""


def run(work: Work, sizes: Sizes, folders: Folders, pictures: Pictures) -> dict[str, str]:
    """Measures, draws, and returns the parts of the page."""
    found = comparison(work, sizes, folders)
    beside = _beside(found, sizes)
    # The embedded model's picture is also that of docs/results.md.
    drawn = pictures.beside_the_page if (work.model, work.merge) == (EMBEDDED, None) else pictures
    quality.draw(found, drawn.path("quality"))
    return {
        "comparison-plot": drawn.line("quality", "Right answers by layer average of keep"),
        "summary": _summary(found),
        "verdict": _verdicts(found, beside),
        "comparison": "\n".join(_of_budget(found, beside, b, sizes) for b in BUDGETS),
        "plans": _plans(found),
    }


def _get(found: Comparison, method: str, target: float) -> Answered | None:
    at = (a for a in found.answered if (a.method, a.target) == (method, target))
    return next(at, None)


def _beside(found: Comparison, sizes: Sizes) -> dict[tuple[str, float], Beside]:
    """tpcal, the mean of its seeds, against every other method at every budget."""
    keys = [(a.method, a.target) for a in found.answered if a.method != OURS]
    figures, p_values = [], []
    for method, target in keys:
        ours, other = (
            _one(_get(found, name, target)).right.astype(float) for name in (OURS, method)
        )
        more = found.sample_group, sizes.resamples
        means = ours.mean(axis=0), other.mean(axis=0)
        figures.append((overall_difference(*means, *more), worst_difference(ours, other, *more)))
        p_values.append(p_paired(*means))
    adjusted = holm(p_values).tolist()
    return {
        key: Beside(*intervals, p)
        for key, intervals, p in zip(keys, figures, adjusted, strict=True)
    }


def _one(answered: Answered | None) -> Answered:
    assert answered is not None, "every budget has it"
    return answered


def _summary(found: Comparison) -> str:
    """Overall and worst-group accuracy of every method at every budget."""
    rows = [["unpruned", *[_pair(found, found.unpruned[None])] * len(BUDGETS)]]
    for method in METHODS:
        cells = []
        for budget in BUDGETS:
            answered = _get(found, method, budget)
            why = found.impossible.get((method, budget), "")
            cells.append(why if answered is None else _pair(found, answered.right))
        rows.append([method, *cells])
    best = {i: max(map(_leading, (row[i] for row in rows[1:]))) for i in range(1, len(rows[0]))}
    for row in rows[1:]:
        for i, figure in best.items():
            row[i] = f"**{row[i]}**" if _leading(row[i]) == figure else row[i]
    return page.table(["method", *(f"{b:.2f}" for b in BUDGETS)], rows)


def _pair(found: Comparison, right: NDArray[np.bool_]) -> str:
    return f"{right.mean():.3f} / {found.worst(right):.3f}"


def _leading(cell: str) -> float:
    first = cell.split(" ")[0]
    return float(first) if first[:1].isdigit() else 0.0


def _of_budget(
    found: Comparison, beside: Mapping[tuple[str, float], Beside], target: float, sizes: Sizes
) -> str:
    """The table of one budget with intervals."""
    headings = ["method", "reached", "accuracy", "worst group", "more than unpruned"]
    headings += ["tpcal has more by", "p", "in the worst group by"]
    rows = [["unpruned", "1", *_accuracies(found, found.unpruned[None]), *[""] * 4]]
    for method in METHODS:
        answered = _get(found, method, target)
        if answered is None:
            rows.append([method, found.impossible[method, target], *[""] * 6])
            continue
        than = beside.get((method, target))
        against = ["", "", ""]
        if than is not None:
            against = [than.overall.show(), f"{than.p:.2g}", than.worst.show()]
        own = [*_accuracies(found, answered.right), _more(found, answered.right, sizes)]
        rows.append([method, f"{answered.reached:.3f}", *own, *against])
        for i, right in enumerate(answered.right if len(answered.right) > 1 else ()):
            own = [*_accuracies(found, right[None]), _more(found, right[None], sizes)]
            rows.append([f"· seed {i}", "", *own, "", "", ""])
    return f"### Layer average {target:.2f}\n\n{page.table(headings, rows)}"


def _more(found: Comparison, right: NDArray[np.bool_], sizes: Sizes) -> str:
    """Accuracy above the unpruned model's, over the same questions."""
    given = right.mean(axis=0), found.unpruned.astype(float), found.sample_group
    return overall_difference(*given, sizes.resamples).show()


def _accuracies(found: Comparison, right: NDArray[np.bool_]) -> list[str]:
    """Overall and of the worst group; with Wilson's intervals where it is one entry."""
    if len(right) > 1:
        return [f"{right.mean():.3f}", f"{found.worst(right):.3f}"]
    worst = int(np.argmin(found.by_group(right)[0]))
    name = found.groups[worst]
    of_worst = _interval(share(right[0][found.sample_group == worst]))
    return [_interval(share(right[0])), f"{of_worst} {name}"]


def _interval(found: Share | None) -> str:
    assert found is not None, "there are questions"
    return Interval(found.value, found.low, found.high).show()


def _verdicts(found: Comparison, beside: Mapping[tuple[str, float], Beside]) -> str:
    """A line per budget: the best other method, and whether tpcal is better beyond noise."""
    lines = []
    for budget in BUDGETS:
        others = [a for a in found.answered if a.target == budget and a.method != OURS]
        own = _one(_get(found, OURS, budget))
        lines.append(f"- **{budget:.2f}**: {_against(own, others, beside, 'any')};")
        published = [a for a in others if a.method not in BASELINES]
        lines.append(f"  {_against(own, published, beside, 'published')}.")
        than = {a.method: beside[a.method, budget] for a in others}
        ahead = [name for name, by in than.items() if by.overall.value < 0 and by.p < NOISE]
        if ahead:
            lines.append(f"  Beyond noise better than tpcal: {', '.join(ahead)}.")
    return "\n".join(lines) + "\n"


def _against(
    own: Answered,
    others: Sequence[Answered],
    beside: Mapping[tuple[str, float], Beside],
    kind: str,
) -> str:
    best = max(others, key=lambda a: float(a.right.mean()))
    than = beside[best.method, best.target]
    proven = "beyond noise" if than.p < NOISE else "within noise"
    ahead = int((own.right.mean(axis=1) > best.right.mean()).sum())
    return (
        f"best of {kind} others is {best.method} ({best.right.mean():.3f}): tpcal is "
        f"{than.overall.verdict()} (p = {than.p:.2g}, {proven}), with {ahead} of "
        f"{len(own.right)} seeds ahead, and in the worst group {than.worst.verdict()}"
    )


def _plans(found: Comparison) -> str:
    """The cuts of tpcal's plans."""
    rows = [
        [f"{target:.2f}", str(seed), " → ".join(map(_cut, cuts))]
        for (target, seed), cuts in found.plans.items()
    ]
    return page.table(["layer average", "seed", "cuts"], rows, n_left=3)


def _cut(cut: Cut) -> str:
    if cut.selector is None:
        return f"{cut.layer}: drop all"
    params = ", ".join(f"{k} {v}" for k, v in cut.params.items())
    return f"{cut.layer}: {cut.keep:.3g} {cut.selector}" + (f" ({params})" if params else "")
