"""View of the accuracy of one plan, or of the unpruned model alone, by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.views.tables import QUIET, TITLE, WORST, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.evaluation_results import (
        EntryResult,
        EvaluationResults,
        GroupResult,
    )
    from tpcal.calibrate.evaluation.shares import Share

OVERALL = "overall"
ENOUGH = 500
"""Number of samples from which on percentages have a decimal."""


@dataclass(frozen=True)
class _Row:
    """A row of the table of one plan."""

    name: str
    n: int
    unpruned: Share | None
    plan: Share | None
    difference: Share | None
    agreement: Share | None


def _rows(results: EvaluationResults) -> list[_Row]:
    """A row for each group and, last, one for all samples."""
    entry = next(iter(results.entries), None)
    before, n = results.unpruned, results.data.n
    parts = [(name, part, entry and entry.groups[name]) for name, part in before.groups.items()]
    rows = [_row(name, part.n, part.accuracy, plan) for name, part, plan in parts]
    return [*rows, _row(OVERALL, n, before.accuracy, entry)]


def _row(name: str, n: int, before: Share | None, plan: EntryResult | GroupResult | None) -> _Row:
    after = (plan.accuracy, plan.difference, plan.agreement) if plan else (None, None, None)
    return _Row(name, n, before, *after)


def group_view(results: EvaluationResults, *, title: str) -> RenderableType:
    """Accuracy of every group with and without the plan, and the paired difference.

    If no sample has a right answer, the share of equal answers is shown.
    """
    *groups, overall = rows = _rows(results)
    shown = {
        "unpruned": overall.unpruned is not None,
        "plan": overall.plan is not None,
        "difference": overall.difference is not None,
        "agreement": overall.unpruned is None and overall.agreement is not None,
    }
    names = [name for name, is_there in shown.items() if is_there]
    titles = {"unpruned": "unpruned %", "plan": "with plan %", "agreement": "same answer %"}
    table = table_of("group", Right("n"), *(Right(titles.get(name, name)) for name in names))
    table.collapse_padding = True  # or 80 columns would not hold the widest figures
    worst = _worst_row(groups)
    for row in rows if len(groups) > 1 else [overall]:
        if row is overall and len(groups) > 1:
            table.add_section()
        style = TITLE if row is overall else WORST if row is worst else ""
        fine = row is overall and row.n >= ENOUGH
        cells = [interval(getattr(row, name), name == "difference", int(fine)) for name in names]
        table.add_row(row.name, str(row.n), *cells, style=style)
    return Group(heading(title), table, *_verdict(overall))


def _worst_row(rows: Sequence[_Row]) -> _Row | None:
    losing = [row for row in rows if row.difference is not None and row.difference.value < 0]
    return min(losing, key=lambda row: row.difference.value if row.difference else 0, default=None)


def _verdict(overall: _Row) -> list[Text]:
    if overall.unpruned is None and overall.agreement is None:
        return [Text("The data has no answers to judge by. Name a --plan to compare with.", QUIET)]
    note = Text("In brackets: 95 % intervals; those of the difference are paired.", QUIET)
    if overall.unpruned is None or overall.plan is None or not overall.unpruned.value:
        return [note]
    kept = 100 * overall.plan.value / overall.unpruned.value
    return [note, Text(f"\nThe plan keeps {kept:.1f} % of the accuracy.")]


def interval(part: Share | None, signed: bool, digits: int) -> str:
    """`93 [91, 95]` in percent."""
    if part is None:
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    bounds = ", ".join(format(100 * bound, form) for bound in (part.low, part.high))
    return f"{100 * part.value:{form}} [{bounds}]"
