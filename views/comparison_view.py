"""View of `tpcal eval`: cost and accuracy of plans and controls, also as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.plan_names import PRESET
from tpcal.views.evaluation_view import evaluation_view, interval
from tpcal.views.formats import QUIET, TITLE, WORST, Right, count, heading, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.compare import Comparison, Entry
    from tpcal.calibrate.evaluation.intervals import Share
    from tpcal.calibrate.evaluation.paired_tests import Test

SIGNIFICANT = 0.05
ENOUGH = 500
"""Number of samples from which on percentages have a decimal."""
MOST_COLUMNS = 4
"""Largest number of plans in one table."""


def comparison_view(comparison: Comparison, *, title: str) -> RenderableType:
    """A table of groups for a single plan; for several, an overview, groups and tests."""
    if not comparison.entries:
        return evaluation_view(comparison.unpruned, title=title)
    if len(comparison.entries) == 1:
        (entry,) = comparison.entries
        return Group(
            evaluation_view(entry.evaluation, title=title),
            *(Text(_sentence(test)) for test in comparison.tests),
            *_impossible(comparison),
            Text(),
            Text(_cost_line(entry), QUIET),
        )
    return Group(heading(title), *_parts(comparison))


def judged_line(n_plans: int) -> Text:
    """The number of plans that were judged on the samples so far."""
    plans = count(n_plans, "plan")
    text = f"Judged on these samples so far: {plans}. tpcal certify on them allows for all."
    return Text(text, style=QUIET)


def markdown(comparison: Comparison, *, title: str) -> str:
    """The comparison as Markdown, with full tables."""
    comparison = _escaped(comparison)
    parts = [f"# {_cell(title)}"]
    digits = int(comparison.unpruned.overall.n >= ENOUGH)
    for part in _parts(comparison, digits):
        if isinstance(part, Table):
            part.box = box.MARKDOWN
            part.show_edge, part.pad_edge, part.collapse_padding = True, True, False
            part.padding = (0, 1)
        parts.append(_plain(part))
    return "\n\n".join(part for part in parts if part)


def _escaped(comparison: Comparison) -> Comparison:
    """The comparison with names escaped for cells of a Markdown table."""
    entries = [
        replace(e, name=_cell(e.name), beside=None if e.beside is None else _cell(e.beside))
        for e in comparison.entries
    ]
    tests = [replace(t, one=_cell(t.one), other=_cell(t.other)) for t in comparison.tests]
    impossible = {_cell(name): why for name, why in comparison.impossible.items()}
    return replace(comparison, entries=tuple(entries), tests=tuple(tests), impossible=impossible)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _plain(part: RenderableType) -> str:
    """A part as plain text of any width."""
    screen = Console(
        file=io.StringIO(),
        width=2_000,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    screen.print(part)
    assert isinstance(screen.file, io.StringIO)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


def _parts(comparison: Comparison, digits: int = 0) -> Iterator[RenderableType]:
    yield _overview(comparison, digits)
    yield Text(_legend(comparison), QUIET)
    for head, entries in _columns(comparison):
        yield Text()
        yield _groups_of(comparison, head, entries)
    if comparison.tests:
        yield Text()
        yield _tests(comparison.tests)
        yield Text(
            "In points, with 95 % intervals. differ: answers that only one of both has right; p: "
            "exact McNemar test, corrected for the number of tests (Holm)."
            if comparison.measure == "accuracy"
            else "In points, with 95 % intervals. differ: answers that only one of both shares "
            "with the unpruned model; p: exact McNemar test, corrected for the number of tests "
            "(Holm).",
            QUIET,
        )
    yield from _impossible(comparison)


def _overview(comparison: Comparison, digits: int) -> Table:
    """A table with the cost and accuracy of the unpruned model, every plan and every control."""

    def shown(part: Share | None, signed: bool = False) -> str:
        return interval(part, signed, digits)

    accuracy = comparison.measure == "accuracy"
    titles = ("keep", "FLOPs", "KV", *(("right %", "change") if accuracy else ()), "same %")
    table = table_of("", *map(Right, titles), "worst group")
    table.padding = (0, 0)  # or 80 columns would not hold the figures
    table.columns[0].overflow = "fold"
    table.columns[-1].no_wrap = True
    *groups, whole = comparison.unpruned.rows()
    judged = (shown(whole.unpruned), "") if accuracy else ()
    lowest = min(groups, key=lambda row: row.unpruned.value if row.unpruned else 1.0)
    worst = f"{lowest.group} {_value(lowest.unpruned)}" if accuracy else ""
    table.add_row("unpruned", "1", "100 %", "100 %", *judged, "", worst)
    for entry in comparison.entries:
        row, cost = entry.evaluation.overall, entry.cost
        judged = (shown(row.plan), shown(row.difference, True)) if accuracy else ()
        table.add_row(
            _label(entry),
            f"{cost.layer_average_keep:.3f}",
            f"{100 * cost.prefill_flops:.0f} %",
            f"{100 * cost.kv_bytes:.0f} %",
            *judged,
            _value(row.agreement) if accuracy else shown(row.agreement),
            _worst_of(entry),
            style=QUIET if entry.beside else "",
        )
    if len(comparison.unpruned.groups) == 1:
        table.columns.pop()
    return table


def _columns(comparison: Comparison) -> Iterator[tuple[str, Sequence[Entry]]]:
    """Titles and entries of the tables by group: plans, and the controls of each plan.

    Controls that an earlier plan has as well are left out.
    """
    plans = comparison.plans
    if len(comparison.unpruned.groups) == 1:
        return
    if not plans:
        yield "group", ()
    for at in range(0, len(plans), MOST_COLUMNS):
        yield "plans", plans[at : at + MOST_COLUMNS]
    for plan in plans:
        new = [entry for entry in comparison.controls(plan.name) if not entry.shared]
        if new:
            yield f"controls of {_short(plan.name)}", new


def _groups_of(comparison: Comparison, head: str, entries: Sequence[Entry]) -> Table:
    """A table with a row for each group and a column for each entry."""
    accuracy = comparison.measure == "accuracy"
    names = [_label(entry).strip() for entry in entries]
    first = f"{head}, {'right' if accuracy else 'same answer'} %"
    table = table_of(first, Right("n"), *(["unpruned"] if accuracy else []), *names)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    before = comparison.unpruned.rows()
    after = [entry.evaluation.rows() for entry in entries]
    for i, row in enumerate(before):
        parts = [rows[i].plan if accuracy else rows[i].agreement for rows in after]
        shown = [row.unpruned, *parts] if accuracy else parts
        style = TITLE if i == len(before) - 1 else ""
        table.add_row(row.group, str(row.n), *map(_value, shown), style=style)
    return table


def _tests(tests: Sequence[Test]) -> Table:
    titles = ("less that of", Right("difference"), Right("differ"), Right("p"))
    table = table_of(f"{tests[0].measure} of", *titles)
    for test in tests:
        table.add_row(
            _short(test.one),
            _other(test),
            interval(test.difference, True, 1),
            str(test.n_changed),
            p_value(test.p_adjusted),
            style=WORST if test.p_adjusted < SIGNIFICANT and test.difference.value < 0 else "",
        )
    for column in table.columns[:2]:
        column.overflow = "fold"
    return table


def _other(test: Test) -> str:
    """The name of the other side of a test, shortened for the plan's own control."""
    kind, equal, plan = test.other.partition(" = ")
    return f"its {kind}" if equal and plan == test.one else _short(test.other)


def p_value(p: float) -> str:
    """A p-value with two digits, or `<0.0001`."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _sentence(test: Test) -> str:
    proven = "beyond chance" if test.p < SIGNIFICANT else "within chance"
    return (
        f"The difference is {proven}: p = {p_value(test.p)} (exact McNemar test; only one of "
        f"both is right in {test.n_changed} answers)."
    )


def _cost_line(entry: Entry) -> str:
    cost, agreement = entry.cost, interval(entry.evaluation.overall.agreement, False, 0)
    return (
        f"Same answers as unpruned: {agreement} %. Layer-average keep, as measured: "
        f"{cost.layer_average_keep:.4f}; of the unpruned prefill {100 * cost.prefill_flops:.0f} % "
        f"of the FLOPs, {100 * cost.kv_bytes:.0f} % of the KV bytes."
    )


def _legend(comparison: Comparison) -> str:
    words = "keep: layer average, as measured. FLOPs, KV: of the unpruned prefill. "
    if comparison.measure == "accuracy":
        words += "change: of right %, in points. "
    return words + "same: as the unpruned answers. In brackets: 95 % intervals."


def _impossible(comparison: Comparison) -> Iterator[Text]:
    for name, why in comparison.impossible.items():
        yield Text(f"No {name}: {why}", WORST)


def _label(entry: Entry) -> str:
    return f"  {entry.control}" if entry.control else _short(entry.name)


def _short(name: str) -> str:
    return name.removeprefix(PRESET)


def _worst_of(entry: Entry) -> str:
    found = entry.worst()
    return f"{found[0]} {100 * found[1]:.0f}" if found else ""


def _value(part: Share | None) -> str:
    return "–" if part is None else f"{100 * part.value:.0f}"
