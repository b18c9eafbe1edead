"""What the folders that `make evidence` wrote say, for docs/results.md and README.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tpcal.calibrate.bench.bench_results import BenchResults
from tpcal.calibrate.evaluation.evaluation_results import (
    CONTROL,
    PUBLISHED,
    EntryResult,
    EvaluationResults,
)
from tpcal.calibrate.evaluation.paired_tests import holm
from tpcal.calibrate.evaluation.shares import Share, Test
from tpcal.plans.local_paths import BUILT_IN

RESULTS = Path(__file__).parents[1] / "results"
"""One folder for each measured model."""
OURS = "tpcal"


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

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.summary["model"])

    @property
    def merges(self) -> bool:
        """Whether the plans merge tokens that leave into others."""
        return "merge" in self.summary

    @property
    def name(self) -> str:
        """`smol`, `smol, tokens merged` or `smol, tokens merged (mean)`."""
        return self.model + (f", {self.merged}" if self.merges else "")

    @property
    def merged(self) -> str:
        """`tokens merged`, and how, unless it is in proportion to what a token stands for."""
        how = self.summary["merge"]
        return "tokens merged" + ("" if how == "proportional" else f" ({how})")

    @property
    def is_built_in(self) -> bool:
        """Whether no published checkpoint was measured."""
        return self.model in BUILT_IN

    @property
    def title(self) -> str:
        """`smol (30 layers)`."""
        return f"{self.name} ({self.summary['n_layers']} layers)"

    @property
    def asked(self) -> EvaluationResults:
        """The answers at the first budget; the questions are the same at all."""
        return next(iter(self.answers.values()))

    @cached_property
    def leads(self) -> Mapping[float, Test]:
        """tpcal's plan beside the best of all others by budget, where there is a test.

        The p-values are adjusted by Holm's method for all tests of the folder, because sentences
        speak of all budgets together.
        """
        tests = [test for results in self.answers.values() for test in results.tests]
        adjusted = holm([test.p for test in tests]).tolist()
        tests = [replace(t, p_adjusted=p) for t, p in zip(tests, adjusted, strict=True)]
        found = {budget: _lead(results, tests) for budget, results in self.answers.items()}
        return {budget: test for budget, test in found.items() if test is not None}

    def drop_all(self) -> dict[int, float]:
        """Loss of dropping all by layer, the mean of all samples."""
        return {int(at): loss for at, loss in self.summary["drop_all"]["all"].items()}

    def worst_drop_all(self) -> dict[int, float]:
        """The same of the group that loses most at the layer."""
        groups = self.summary["drop_all"]["groups"].values()
        return {at: max(curve[str(at)] for curve in groups) for at in self.drop_all()}


def load_all(folder: Path) -> list[Evidence]:
    """Every folder with a whole run, the shallowest model first."""
    found = [Evidence.load(path.parent) for path in folder.glob("*/summary.json")]
    return sorted(found, key=lambda e: (not e.is_built_in, e.summary["n_layers"], e.name))


def method(entry: EntryResult) -> str:
    """`tpcal` for a plan file, else the preset's or control's name without its budget."""
    return entry.short.partition("@")[0] if entry.kind in (PUBLISHED, CONTROL) else OURS


def best(results: EvaluationResults, *kinds: str) -> EntryResult | None:
    """The entry of these kinds with most right answers, or most answers as without a plan."""
    own = [entry for entry in results.entries if entry.kind in kinds and entry.value]
    return max(own, key=lambda e: e.value.value if e.value else 0.0, default=None)


def ours(results: EvaluationResults) -> EntryResult:
    """tpcal's plan."""
    return next(entry for entry in results.entries if method(entry) == OURS)


def _lead(results: EvaluationResults, tests: Iterable[Test]) -> Test | None:
    """tpcal's plan beside the best of all others; None if there is no other, or no test."""
    other, own = best(results, PUBLISHED, CONTROL), ours(results).name
    return next((t for t in tests if other and (t.one, t.other) == (own, other.name)), None)


def unpruned(results: EvaluationResults) -> str:
    """The cell of the unpruned model."""
    groups = [g.accuracy.value for g in results.unpruned.groups.values() if g.accuracy]
    if results.unpruned.accuracy is None:  # its answers are what others are compared with
        return cell(Share(1.0, 1.0, 1.0), 1.0)
    return cell(results.unpruned.accuracy, min(groups, default=None))


def cell_of(entry: EntryResult) -> str:
    """The cell of a plan, published schedule or control."""
    worst = entry.worst_group
    return cell(entry.value, None if worst is None else worst.value)


def cell(share: Share | None, worst: float | None) -> str:
    """`96.3 / 79`: all questions / the worst group, in %."""
    if share is None:
        return "–"
    return f"{100 * share.value:.1f}" + ("" if worst is None else f" / {100 * worst:.0f}")
