"""The measured part of docs/results.md, made of the folders that `make evidence` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcal.benchmarks.planner.page import table
from tpcal.calibrate.bench.bench_results import BenchResults, RunResult
from tpcal.calibrate.bench.ratios import MEASURES
from tpcal.calibrate.evaluation.evaluation_results import (
    CONTROL,
    PUBLISHED,
    EntryResult,
    EvaluationResults,
)
from tpcal.calibrate.evaluation.shares import Share, Test

RESULTS = Path(__file__).parents[1] / "results"
"""One folder for each measured model."""
OURS = "tpcal"
NOISE = 0.05
"""Tests with a smaller corrected p-value are beyond noise."""


@dataclass(frozen=True)
class Evidence:
    """What one folder holds."""

    summary: Mapping[str, Any]
    answers: Mapping[float, EvaluationResults]
    """By budget."""
    times: BenchResults

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Reads a folder of results."""
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        answers = {
            float(budget): EvaluationResults.load(folder / f"eval-{budget:g}.json")
            for budget in summary["budgets"]
        }
        return cls(summary, answers, BenchResults.load(folder / "bench.json"))


def text() -> str:
    """A section for every folder, in the order of their names."""
    folders = sorted(path.parent for path in RESULTS.glob("*/summary.json"))
    return "\n\n".join(section(Evidence.load(folder)) for folder in folders) + "\n"


def section(evidence: Evidence) -> str:
    """The section of one model."""
    about, first = evidence.summary, next(iter(evidence.answers.values()))
    measure = {"accuracy": "right answers"}.get(first.measure, "answers of the unpruned model")
    intro = (
        f"{about['n_layers']} layers, {about['n_tokens']} visual tokens. Calibrated on "
        f"{about['n_samples']} samples with {about['n_probes']} probes; {first.data.n} unseen "
        f"questions of {len(first.data.groups)} groups ({first.data.name}). tpcal "
        f"{about['tpcal']}, {evidence.times.machine.device}, {evidence.times.machine.dtype}."
    )
    parts = [
        f"## {about['model']}",
        intro,
        f"{measure.capitalize()} in % of all questions / of the worst group:",
        answers_table(evidence.answers),
        "\n".join(map(verdict, evidence.answers.items())),
        "Loss of dropping all visual tokens before a layer, in nats per answer token:",
        drop_all_table(about["drop_all"]),
        "Times with each plan, as a ratio to the unpruned model (median of the repeats):",
        times_table(evidence.times),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def answers_table(answers: Mapping[float, EvaluationResults]) -> str:
    """Rows are methods, columns are budgets."""
    rows: dict[str, dict[float, str]] = {"unpruned": {}}
    for budget, results in answers.items():
        rows["unpruned"][budget] = _cell(*_unpruned(results))
        for entry in results.entries:
            worst = None if entry.worst_group is None else entry.worst_group.value
            rows.setdefault(method(entry), {})[budget] = _cell(entry.value, worst)
    # A method that cannot be as cheap as a budget has no entry there.
    body = [[name, *(cells.get(b, "–") for b in answers)] for name, cells in rows.items()]
    return table(["", *(f"{budget:.2f}" for budget in answers)], body)


def method(entry: EntryResult) -> str:
    """`tpcal` for a plan file, else the preset's or control's name without its budget."""
    return entry.short.partition("@")[0] if entry.kind in (PUBLISHED, CONTROL) else OURS


def verdict(item: tuple[float, EvaluationResults]) -> str:
    """A line of the list: tpcal beside the best of all others at a budget."""
    budget, results = item
    plan = next(e for e in results.entries if method(e) == OURS)
    others = [e for e in results.entries if method(e) != OURS and e.value is not None]
    best = max(others, key=lambda e: e.value.value if e.value else 0.0)
    found = _test(results.tests, plan.name, best.name)
    if found is None:
        return f"- **{budget:.2f}**: the best other method is {method(best)}; no test was made."
    lead, p = 100 * found.difference.value, found.p_adjusted
    word = "ahead of" if lead > 0 else "behind"
    noise = "beyond noise" if p < NOISE else "within noise"
    return (
        f"- **{budget:.2f}**: tpcal is {abs(lead):.1f} points {word} {method(best)}, the best "
        f"other method (p = {p:.2g} after correction, {noise})."
    )


def _test(tests: Iterable[Test], one: str, other: str) -> Test | None:
    return next((t for t in tests if t.one == one and t.other == other), None)


def drop_all_table(curves: Mapping[str, Mapping[str, float]]) -> str:
    """All samples, and the group that loses most anywhere."""
    layers = list(curves["all"])
    groups = {g: c for g, c in curves.items() if g != "all"}
    worst = ["worst group", *(f"{max(c[at] for c in groups.values()):.2f}" for at in layers)]
    whole = ["all", *(f"{curves['all'][at]:.2f}" for at in layers)]
    return table(["layer", *layers], [whole, worst] if groups else [whole])


def times_table(times: BenchResults) -> str:
    """A row for every cell and plan."""
    head = ["prompts", "plan", *(m.says for m in MEASURES), "KV bytes"]
    body = [
        [cell.title, _plan(run), *_ratios(run), f"{run.kv_bytes / cell.unpruned.kv_bytes:.2f}"]
        for cell in times.cells
        for run in cell.plans
    ]
    return table(head, body, n_left=2)


def _plan(run: RunResult) -> str:
    return run.name.removeprefix("preset:") if run.name.startswith("preset:") else OURS


def _ratios(run: RunResult) -> list[str]:
    return [f"{run.ratios[m.name].median:.2f}" for m in MEASURES]


def _unpruned(results: EvaluationResults) -> tuple[Share | None, float | None]:
    shares = [g.accuracy.value for g in results.unpruned.groups.values() if g.accuracy]
    return results.unpruned.accuracy, min(shares, default=None)


def _cell(share: Share | None, worst: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share.value:.1f}" + ("" if worst is None else f" / {100 * worst:.0f}")
