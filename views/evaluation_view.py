"""View of `tpcal eval`: cost and accuracy of plans and controls, also as Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.calibrate.evaluation.evaluation_results import short_name
from tpcal.calibrate.evaluation.shares import ACCURACY
from tpcal.plans.formats import count
from tpcal.views.evaluation_groups import ENOUGH, OVERALL, group_view, interval
from tpcal.views.tables import QUIET, TITLE, WORST, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.evaluation_results import EntryResult, EvaluationResults
    from tpcal.calibrate.evaluation.shares import Share, Test

SIGNIFICANT = 0.05
MOST_COLUMNS = 4
"""Largest number of plans in one table."""


def evaluation_view(results: EvaluationResults, *, title: str) -> RenderableType:
    """A table of groups for at most one plan; for several, an overview, groups and tests."""
    if len(results.entries) > 1:
        return Group(heading(title), *_parts(results))
    costs = (Text(_cost_line(entry), QUIET) for entry in results.entries)
    return Group(
        group_view(results, title=title),
        *_f1_lines(results),
        *(Text(_sentence(test)) for test in results.tests),
        *_impossible(results),
        *(line for cost in costs for line in (Text(), cost)),
    )


def judged_line(n_plans: int) -> Text:
    """The number of plans that were judged on the samples so far."""
    plans = count(n_plans, "plan")
    text = (
        f"Judged on these samples so far: {plans}. tpcal certify takes all of them into account."
    )
    return Text(text, style=QUIET)


def evaluation_markdown(results: EvaluationResults, *, title: str) -> str:
    """The results as Markdown, with full tables."""
    results = type(results).from_json(_escaped(results.to_json()))
    parts = [f"# {_cell(title)}"]
    digits = int(results.data.n >= ENOUGH)
    for part in _parts(results, digits):
        if isinstance(part, Table):
            part.box = box.MARKDOWN
            part.show_edge, part.pad_edge, part.collapse_padding = True, True, False
            part.padding = (0, 1)
        parts.append(_plain(part))
    return "\n\n".join(part for part in parts if part)


def _escaped(data: Any) -> Any:
    """Plain data with all texts, such as names of groups, escaped for a Markdown table."""
    if isinstance(data, Mapping):
        return {_escaped(key): _escaped(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_escaped(value) for value in data]
    return _cell(data) if isinstance(data, str) else data


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


def _parts(results: EvaluationResults, digits: int = 0) -> Iterator[RenderableType]:
    yield _overview(results, digits)
    yield Text(_legend(results), QUIET)
    for head, entries in _columns(results):
        yield Text()
        yield _groups_of(results, head, entries)
    yield from _f1_lines(results)
    if results.tests:
        yield Text()
        yield _tests(results.tests)
        yield Text(_legend_of_tests(results), QUIET)
    yield from _impossible(results)


def _f1_lines(results: EvaluationResults) -> Iterator[Text]:
    """F1 of the answer yes of every group that has one."""
    for group, before in results.unpruned.f1.items():
        after = [f"{entry.short} {100 * entry.f1[group]:.1f}" for entry in results.entries]
        each = ", ".join([f"unpruned {100 * before:.1f}", *after])
        yield Text(f"F1 of the answer yes in {group}, %: {each}.", QUIET)


def _legend_of_tests(results: EvaluationResults) -> str:
    name = _test_name(any(test.is_graded for test in results.tests))
    differ = "answers that only one of both shares with the unpruned model"
    if results.measure == ACCURACY:
        differ = "answers that only one of both has right"
        if any(test.is_graded for test in results.tests):
            differ = "answers that both score differently"
    return (
        f"In points, with 95 % intervals. differ: {differ}; p: {name}, corrected for the number "
        "of tests (Holm)."
    )


def _test_name(is_graded: bool) -> str:
    return "sign-flip test" if is_graded else "exact McNemar test"


def _overview(results: EvaluationResults, digits: int) -> Table:
    """A table with the cost and accuracy of the unpruned model, every plan and every control."""

    def shown(part: Share | None, signed: bool = False) -> str:
        return interval(part, signed, digits)

    accuracy = results.measure == ACCURACY
    titles = ("keep", "FLOPs", "KV", *(("right %", "change") if accuracy else ()), "same %")
    table = table_of("", *map(Right, titles), "worst group")
    table.padding = (0, 0)  # or 80 columns would not hold the figures
    table.columns[0].overflow = "fold"
    table.columns[-1].no_wrap = True
    before = results.unpruned
    judged = (shown(before.accuracy), "") if accuracy else ()
    table.add_row("unpruned", "1", "100 %", "100 %", *judged, "", _lowest(results))
    for entry in results.entries:
        cost = entry.cost
        judged = (shown(entry.accuracy), shown(entry.difference, True)) if accuracy else ()
        table.add_row(
            _label(entry),
            f"{cost.layer_average_keep:.3f}",
            f"{100 * cost.prefill_flops:.0f} %",
            f"{100 * cost.kv_bytes:.0f} %",
            *judged,
            _value(entry.agreement) if accuracy else shown(entry.agreement),
            _worst_of(entry),
            style=QUIET if entry.beside else "",
        )
    if len(results.data.groups) == 1:
        table.columns.pop()
    return table


def _lowest(results: EvaluationResults) -> str:
    """The group in which the unpruned model is worst; empty if no sample has a right answer."""
    if results.measure != ACCURACY:
        return ""
    parts = {name: group.accuracy for name, group in results.unpruned.groups.items()}
    name = min(parts, key=lambda n: part.value if (part := parts[n]) else 1.0)
    return f"{name} {_value(parts[name])}"


def _columns(results: EvaluationResults) -> Iterator[tuple[str, Sequence[EntryResult]]]:
    """Titles and entries of the tables by group: plans, and the controls of each plan.

    Controls that an earlier plan has as well are left out.
    """
    plans = results.plans
    if len(results.data.groups) == 1:
        return
    if not plans:
        yield "group", ()
    for at in range(0, len(plans), MOST_COLUMNS):
        yield "plans", plans[at : at + MOST_COLUMNS]
    for plan in plans:
        new = [entry for entry in results.controls(plan.name) if not entry.shared]
        if new:
            yield f"controls of {plan.short}", new


def _groups_of(results: EvaluationResults, head: str, entries: Sequence[EntryResult]) -> Table:
    """A table with a row for each group and a column for each entry."""
    accuracy = results.measure == ACCURACY
    names = [_label(entry).strip() for entry in entries]
    first = f"{head}, {'right' if accuracy else 'same answer'} %"
    table = table_of(first, Right("n"), *(["unpruned"] if accuracy else []), *names)
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    whole = results.unpruned.accuracy, [entry.value for entry in entries]
    rows = [
        (name, group.n, group.accuracy, [entry.value_of(name) for entry in entries], "")
        for name, group in results.unpruned.groups.items()
    ]
    for name, n, before, after, style in [*rows, (OVERALL, results.data.n, *whole, TITLE)]:
        shown = [before, *after] if accuracy else after
        table.add_row(name, str(n), *map(_value, shown), style=style)
    return table


def _tests(tests: Sequence[Test]) -> Table:
    titles = ("less that of", Right("difference"), Right("differ"), Right("p"))
    table = table_of(f"{tests[0].measure} of", *titles)
    for test in tests:
        table.add_row(
            short_name(test.one),
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
    return f"its {kind}" if equal and plan == test.one else short_name(test.other)


def p_value(p: float) -> str:
    """A p-value with two digits, or `<0.0001`."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _sentence(test: Test) -> str:
    proven = "beyond chance" if test.p < SIGNIFICANT else "within chance"
    how = f"only one of both is right in {test.n_changed} answers"
    if test.is_graded:
        how = f"{test.n_changed} answers have another score"
    name = _test_name(test.is_graded)
    return f"The difference is {proven}: p = {p_value(test.p)} ({name}; {how})."


def _cost_line(entry: EntryResult) -> str:
    cost, agreement = entry.cost, interval(entry.agreement, False, 0)
    return (
        f"Same answers as unpruned: {agreement} %. Layer-average keep, as measured: "
        f"{cost.layer_average_keep:.4f}; of the unpruned prefill {100 * cost.prefill_flops:.0f} % "
        f"of the FLOPs, {100 * cost.kv_bytes:.0f} % of the KV bytes."
    )


def _legend(results: EvaluationResults) -> str:
    words = "keep: layer average, as measured. FLOPs, KV: of the unpruned prefill. "
    if results.measure == ACCURACY:
        words += "change: of right %, in points. "
    return words + "same: as the unpruned answers. In brackets: 95 % intervals."


def _impossible(results: EvaluationResults) -> Iterator[Text]:
    for name, why in results.impossible.items():
        yield Text(f"No {name}: {why}", WORST)


def _label(entry: EntryResult) -> str:
    return f"  {entry.short}" if entry.beside else entry.short


def _worst_of(entry: EntryResult) -> str:
    worst = entry.worst_group
    return f"{worst.group} {100 * worst.value:.0f}" if worst else ""


def _value(part: Share | None) -> str:
    return "–" if part is None else f"{100 * part.value:.0f}"
