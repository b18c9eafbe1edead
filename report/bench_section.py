"""Section of the times and memory measured by `tpcal bench`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from tpcal.calibrate.evaluation.evaluation_results import short_name
from tpcal.plans.formats import binary, count
from tpcal.report.elements import HtmlTable, Section
from tpcal.report.ratio_charts import ratios

if TYPE_CHECKING:
    from tpcal.calibrate.bench.bench_results import BenchResults, CellResult, RunResult
    from tpcal.calibrate.bench.ratios import Spread


def benches(results: BenchResults) -> Section:
    """The section of a timing."""
    machine = ", ".join(f"{name} {value}" for name, value in asdict(results.machine).items())
    compared = any(run.ratios for cell in results.cells for run in cell.runs)
    return Section(
        "bench",
        "Time and memory, measured",
        _lead(results),
        f"{results.name}, pruned and unpruned in turns on the same prompts. Dots are medians of "
        "ratios to the unpruned model, bars the middle half of the repeats; the line at 1 is the "
        f"unpruned model. {_same(results)}Measured on: {machine}.",
        (*([ratios(results, names_of(results))] if compared else []), _table(results)),
    )


def _lead(results: BenchResults) -> str:
    n = count(len(results.cells), "cell")
    if results.slower:
        return " ".join(results.slower)
    ratios = [
        run.ratios["ttft"].value for cell in results.cells for run in cell.runs if run.ratios
    ]
    if not ratios:
        return f"{n} measured, of the unpruned model alone."
    low, high = min(ratios), max(ratios)
    return (
        f"Nowhere is a plan slower than unpruned beyond noise, in {n}; medians of the time to the "
        f"first token are {low:.2f} to {high:.2f} times the unpruned ones."
    )


def names_of(results: BenchResults) -> list[str]:
    """A name of each cell that distinguishes it from the others."""
    differ = [len({words[i] for words in map(_words, results.cells)}) > 1 for i in range(4)]
    differ[0] = True
    return [
        ", ".join(words for words, d in zip(_words(cell), differ, strict=True) if d)
        for cell in results.cells
    ]


def _words(cell: CellResult) -> tuple[str, ...]:
    text = f"{cell.n_text}"
    if cell.n_text_least != cell.n_text:
        text = f"{cell.n_text_least}–{cell.n_text}"
    return (
        *(f"batch {cell.batch_size}", f"{cell.n_visual} image tokens"),
        *(f"{text} text tokens", f"{cell.n_new} new tokens"),
    )


def _same(results: BenchResults) -> str:
    """A sentence on the sizes that all cells have in common; empty if there are none."""
    sizes = list(zip(*map(_words, results.cells), strict=True))
    same = [words[0] for words in sizes if len(set(words)) == 1]
    return f"In all cells: {', '.join(same)}. " if same else ""


def _table(results: BenchResults) -> HtmlTable:
    head = (
        *("cell", "run", "first token, ms", "per token, ms", "tokens per second"),
        *("peak memory", "KV cache"),
    )
    named = zip(names_of(results), results.cells, strict=True)
    rows = tuple(_row(words, run) for words, cell in named for run in cell.runs)
    return HtmlTable(
        "Medians, and the middle half of the repeats; peak memory is beyond the weights",
        head,
        rows,
        n_text=2,
    )


def _row(cell: str, run: RunResult) -> tuple[str, ...]:
    return (
        cell,
        short_name(run.name),
        _times(run.ttft_ms),
        _times(run.token_ms),
        _times(run.tokens_per_s),
        "–" if run.peak_bytes is None else binary(run.peak_bytes),
        binary(run.kv_bytes),
    )


def _times(span: Spread) -> str:
    digits = 0 if span.value >= 100 else 1 if span.value >= 10 else 2
    return f"{span.value:.{digits}f} [{span.low:.{digits}f}, {span.high:.{digits}f}]"
