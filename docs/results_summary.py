"""All measured models side by side, for README.md and the beginning of docs/results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from results_records import (
    OURS,
    Evidence,
    best,
    cell_of,
    method,
    ours,
    unpruned,
)

from tpcal.benchmarks.planner.intervals import NOISE
from tpcal.benchmarks.planner.page import table
from tpcal.calibrate.evaluation.evaluation_results import CONTROL, PUBLISHED, EntryResult
from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults as Results

DEPTHS = [i / 8 for i in range(8)]
"""Shares of the depth at which curves of decoders of several depths are compared."""


def status(found: Sequence[Evidence]) -> str:
    """Which models have been measured, and what that is worth."""
    # A checkpoint has a further folder where it was also measured with tokens merged.
    checkpoints = dict.fromkeys(e.model for e in found if not e.is_built_in)
    if checkpoints:
        return f"Published checkpoints measured so far: {', '.join(checkpoints)}.\n"
    return (
        "**No published checkpoint has been measured yet.** The models on this page are built "
        "in and small, and answer questions about generated pictures. The published curves of "
        "models of 7 billion parameters fall more gradually than that of `smol`, which takes most "
        "answers from the image in two late layers.\n"
    )


def readme(found: Sequence[Evidence]) -> str:
    """The table of README.md, with what it may and may not be read as."""
    first = found[0].asked
    asked = sorted({evidence.asked.data.n for evidence in found})
    return (
        "The table gives the right answers in % (all questions / worst of "
        f"{len(first.data.groups)} groups) of the built-in models on "
        f"{' and '.join(f'{n:,}' for n in asked)} held-out questions, by budget:\n\n"
        f"{side_by_side(found)}\n{claims(found)}"
    )


def side_by_side(found: Sequence[Evidence]) -> str:
    """Of every model: the unpruned model, tpcal, and the best of the others of both kinds."""
    budgets = sorted({budget for evidence in found for budget in evidence.answers})
    rows, seen = [], set()
    for evidence in found:
        at = evidence.answers
        if evidence.merges and evidence.model in seen:  # the others are those of the rows above
            rows.append(
                [f"**{OURS}, {evidence.merged}**", *(_shown(at, b, _bold) for b in budgets)]
            )
            continue
        seen.add(evidence.model)
        rows.append(
            [f"**{evidence.title}**, unpruned", *(_shown(at, b, unpruned) for b in budgets)]
        )
        rows.append([f"**{OURS}**", *(_shown(at, b, _bold) for b in budgets)])
        rows.append(["best published method", *(_shown(at, b, _published) for b in budgets)])
        rows.append(["best control", *(_shown(at, b, _control) for b in budgets)])
    return table(["", *(f"{budget:.2f}" for budget in budgets)], rows)


def _shown(at: Mapping[float, Results], budget: float, show: Callable[[Results], str]) -> str:
    return show(at[budget]) if budget in at else "–"


def _bold(results: Results) -> str:
    return f"**{cell_of(ours(results))}**"


def _published(results: Results) -> str:
    return _named(best(results, PUBLISHED))


def _control(results: Results) -> str:
    return _named(best(results, CONTROL))


def _named(entry: EntryResult | None) -> str:
    return "–" if entry is None else f"{cell_of(entry)} {method(entry)}"


def claims(found: Sequence[Evidence]) -> str:
    """A sentence for each model: where tpcal is ahead or behind beyond noise."""
    return "\n".join(map(_claim, found)) + "\n"


def _claim(evidence: Evidence) -> str:
    clear = {b: t for b, t in evidence.leads.items() if t.p_adjusted < NOISE}
    ahead = [f"{b:.2f}" for b, t in clear.items() if t.difference.value > 0]
    behind = [f"{b:.2f}" for b, t in clear.items() if t.difference.value < 0]
    other = "the best other method" + (", which drops tokens," if evidence.merges else "")
    parts = [f"ahead of {other} at {_listed(ahead)}"] if ahead else []
    parts += [f"behind {other} at {_listed(behind)}"] if behind else []
    where = evidence.model + (f", with {evidence.merged}," if evidence.merges else "")
    rest = len(evidence.leads) - len(clear)
    if not parts:
        return f"On {where} the difference from {other} is within noise at every budget."
    tail = "; elsewhere the difference is within noise" if rest else ""
    return f"On {where} tpcal is, beyond noise, {' and '.join(parts)}{tail}."


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b` or `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def depth_table(found: Sequence[Evidence]) -> str:
    """The drop-all curves of all models at the same relative depths."""
    rows = []
    for evidence in found:
        rows.append([evidence.title, *_at_depths(evidence, evidence.drop_all())])
        rows.append(["· its worst group", *_at_depths(evidence, evidence.worst_drop_all())])
    return table(["before", *(f"{depth:.0%}" for depth in DEPTHS)], rows)


def _at_depths(evidence: Evidence, curve: dict[int, float]) -> list[str]:
    layers = [depth * evidence.summary["n_layers"] for depth in DEPTHS]
    return [f"{v:.2f}" for v in np.interp(layers, list(curve), list(curve.values()))]
