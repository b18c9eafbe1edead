"""Section of the accuracy of plans and controls measured by `tpcal eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tpcal.calibrate.evaluation.evaluation_results import CONTROL, short_name
from tpcal.calibrate.evaluation.shares import ACCURACY
from tpcal.plans.errors import FitError
from tpcal.plans.formats import percent
from tpcal.report.elements import Chart, HtmlTable, Section
from tpcal.report.forest_plot import by_cost, exact, forest, grouped

if TYPE_CHECKING:
    from tpcal.calibrate.bench.bench_results import BenchResults
    from tpcal.calibrate.evaluation.evaluation_results import EntryResult, EvaluationResults
    from tpcal.calibrate.evaluation.shares import Share, Test
    from tpcal.calibrate.profile import Profile

SMALL = 0.05


def check_model(results: EvaluationResults | BenchResults, name: str, profile: Profile) -> None:
    """Raises FitError if the results are of another model than the profile.

    Results of random weights are accepted.

    Raises:
        FitError: If the model is another one.
    """
    model = results.model
    if model is not None and model.fingerprint not in (None, profile.model.fingerprint):
        raise FitError(name, [f"made with {model.name}; the profile is of another model."])


def evaluations(results: EvaluationResults) -> Section:
    """The section of an evaluation."""
    has_answers = results.measure == ACCURACY
    what = "accuracy" if has_answers else "agreement with the unpruned model"
    charts = [forest(results, what), by_cost(results, what)] if results.entries else []
    parts: list[Chart | HtmlTable] = [chart for chart in charts if chart]
    parts += [_right(results) if has_answers else _same(results)]
    parts += [_tests(results)] if results.tests else []
    parts += [_plans(results, what), *_controls(results, what)]
    controls = any(e.kind == CONTROL for e in results.entries)
    return Section(
        "evaluation",
        "Answers, measured",
        _lead(results, what),
        f"On {results.data.description}. Bars and brackets are 95 % intervals; differences are "
        "paired, sample by sample, and keeps are means over these samples."
        + " Controls choose blindly at the cost of the plan above them."
        * controls,
        tuple(parts),
    )


def _lead(results: EvaluationResults, what: str) -> str:
    before, text = results.unpruned.accuracy, []
    if before:
        text.append(f"Unpruned, {percent(before.value)} of the answers are right.")
    for entry in results.entries:
        if entry.kind == "plan" and entry.value:
            lowest = entry.worst_group
            worst = f"; its worst group is “{lowest.group}”" if lowest else ""
            much = f"{percent(entry.value.value)} {what} at keep {entry.keep:.2g}"
            text.append(f"{entry.name} has {much}{worst}.")
    if results.tests:
        n = sum(test.p_adjusted < SMALL for test in results.tests)
        text.append(
            f"{n} of {len(results.tests)} paired comparisons {'is' if n == 1 else 'are'} beyond "
            f"chance (p below {SMALL:g} after correction for their number)."
        )
    return " ".join(text)


def _right(results: EvaluationResults) -> HtmlTable:
    head = (
        "plan",
        "keep",
        "FLOPs",
        "KV",
        "right, %",
        "change, points",
        "same, %",
        "worst group, %",
    )
    rows = [("unpruned", "1", "100 %", "100 %", _span(results.unpruned.accuracy), "", "", "")]
    rows += [
        (
            *(e.short, *_cost(e), _span(e.accuracy), _span(e.difference, signed=True)),
            *(_value(e.agreement), _worst(e)),
        )
        for e in grouped(results)
    ]
    caption = (
        "Answers by plan. FLOPs of the prefill and KV cache: of unpruned; change: of right answers"
        "; same: as the unpruned answer"
    )
    return _below(results, HtmlTable(caption, head, tuple(rows)))


def _same(results: EvaluationResults) -> HtmlTable:
    head = ("plan", "keep", "FLOPs", "KV", "same, %", "worst group, %")
    rows = [(e.short, *_cost(e), _span(e.agreement), _worst(e)) for e in grouped(results)]
    caption = (
        "Answers by plan. FLOPs of the prefill and KV cache: of unpruned; same: as the unpruned "
        "answer"
    )
    return _below(results, HtmlTable(caption, head, tuple(rows)))


def _below(results: EvaluationResults, table: HtmlTable) -> HtmlTable:
    """The table with controls indented below their plan."""
    entries = grouped(results)
    first = len(table.rows) - len(entries)
    return replace(
        table, under=frozenset(first + i for i, e in enumerate(entries) if e.kind == CONTROL)
    )


def _cost(entry: EntryResult) -> tuple[str, str, str]:
    cost = entry.cost
    return f"{entry.keep:.3f}", percent(cost.prefill_flops), percent(cost.kv_bytes)


def _worst(entry: EntryResult) -> str:
    worst = entry.worst_group
    return f"{worst.group} {100 * worst.value:.0f}" if worst else "–"


def _plans(results: EvaluationResults, what: str) -> HtmlTable:
    return _groups(f"{what[0].upper()}{what[1:]} by group, %", results, results.plans)


def _controls(results: EvaluationResults, what: str) -> list[HtmlTable]:
    """A table for each plan that has controls."""
    found = []
    for plan in results.plans:
        own = results.controls(plan.name)
        if own:
            caption = f"{plan.short} beside its controls: {what} by group, %"
            found.append(replace(_groups(caption, results, [plan, *own]), folded=True))
    return found


def _groups(caption: str, results: EvaluationResults, entries: Sequence[EntryResult]) -> HtmlTable:
    has_answers = results.measure == ACCURACY
    head = ("group", *["unpruned"] * has_answers, *(e.short for e in entries))
    rows = tuple(
        (g, *[_value(before.accuracy)] * has_answers, *(_value(e.value_of(g)) for e in entries))
        for g, before in results.unpruned.groups.items()
    )
    return HtmlTable(caption, head, rows)


def _tests(results: EvaluationResults) -> HtmlTable:
    tests = results.tests
    measures = list(dict.fromkeys(test.measure for test in tests))
    several = len(measures) > 1
    head = ("comparison", *["of"] * several, "difference, points", "differ", "p", "p, corrected")
    rows = tuple(
        (
            _pair(t, results),
            *[t.measure] * several,
            _span(t.difference, signed=True),
            str(t.n_changed),
            _p(t.p),
            _p(t.p_adjusted),
        )
        for t in tests
    )
    clear = frozenset(i for i, t in enumerate(tests) if t.p_adjusted < SMALL)
    caption = (
        f"Paired tests of {' and '.join(measures)}; bold where the corrected p is below "
        f"{SMALL:g}. differ: samples that tell both apart"
    )
    return HtmlTable(caption, head, rows, n_text=1 + several, strong=clear)


def _pair(test: Test, results: EvaluationResults) -> str:
    """`plan.yaml − its random`"""
    beside = {e.name: e.beside for e in results.entries}.get(test.other)
    other = short_name(test.other, beside)
    return f"{short_name(test.one)} − {'its ' * (beside == test.one)}{other}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _value(share: Share | None) -> str:
    return "–" if share is None else f"{100 * share.value:.0f}"


def _span(share: Share | None, signed: bool = False) -> str:
    """`93.1 [91.0, 95.2]`, or `−1.8 [−3.9, +0.0]`"""
    if share is None or not signed:
        return exact(share).replace(" %", "")
    shares = (share.value, share.low, share.high)
    value, low, high = (f"{round(100 * x, 1) + 0.0:+.1f}" for x in shares)  # no -0.0
    return f"{value} [{low}, {high}]".replace("-", "−")
