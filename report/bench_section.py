"""Section of the times and memory measured by `tpcal bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tpcal.report.elements import HtmlTable, Section
from tpcal.report.ratio_charts import ratios
from tpcal.report.read_json import brief
from tpcal.views.formats import binary, count

if TYPE_CHECKING:
    from tpcal.report.read_json import Span, Timed, TimedCell, TimedRun


def benches(timed: Timed) -> Section:
    """The section of a timing."""
    machine = ", ".join(f"{name} {value}" for name, value in timed.machine.items())
    compared = any(run.ratios for cell in timed.cells for run in cell.runs)
    return Section(
        "bench",
        "Time and memory, measured",
        _lead(timed),
        f"{timed.model}, pruned and unpruned in turns on the same prompts. Dots are medians of "
        "ratios to the unpruned model, bars the middle half of the repeats; the line at 1 is the "
        f"unpruned model. {_same(timed)}Measured on: {machine}.",
        (*([ratios(timed, names_of(timed))] if compared else []), _table(timed)),
    )


def _lead(timed: Timed) -> str:
    n = count(len(timed.cells), "cell")
    if timed.slower:
        return " ".join(timed.slower)
    ratios = [run.ratios["ttft"].value for cell in timed.cells for run in cell.runs if run.ratios]
    if not ratios:
        return f"{n} measured, of the unpruned model alone."
    low, high = min(ratios), max(ratios)
    return (
        f"Nowhere is a plan slower than unpruned beyond noise, in {n}; medians of the time to the "
        f"first token are {low:.2f} to {high:.2f} times the unpruned ones."
    )


def names_of(timed: Timed) -> list[str]:
    """A name of each cell that distinguishes it from the others."""
    differ = [len({words[i] for words in map(_words, timed.cells)}) > 1 for i in range(4)]
    differ[0] = True
    return [
        ", ".join(words for words, d in zip(_words(cell), differ, strict=True) if d)
        for cell in timed.cells
    ]


def _words(cell: TimedCell) -> tuple[str, ...]:
    rows, n_visual, n_text, n_new = cell.sizes
    text = f"{n_text}" if cell.n_text_least == n_text else f"{cell.n_text_least}–{n_text}"
    return (
        *(f"batch {rows}", f"{n_visual} image tokens"),
        *(f"{text} text tokens", f"{n_new} new tokens"),
    )


def _same(timed: Timed) -> str:
    """A sentence on the sizes that all cells have in common; empty if there are none."""
    sizes = list(zip(*map(_words, timed.cells), strict=True))
    same = [words[0] for words in sizes if len(set(words)) == 1]
    return f"In all cells: {', '.join(same)}. " if same else ""


def _table(timed: Timed) -> HtmlTable:
    head = (
        *("cell", "run", "first token, ms", "per token, ms", "tokens per second"),
        *("peak memory", "KV cache"),
    )
    named = zip(names_of(timed), timed.cells, strict=True)
    rows = tuple(_row(words, run) for words, cell in named for run in cell.runs)
    return HtmlTable(
        "Medians, and the middle half of the repeats; peak memory is beyond the weights",
        head,
        rows,
        n_text=2,
    )


def _row(cell: str, run: TimedRun) -> tuple[str, ...]:
    return (
        cell,
        brief(run.name),
        _times(run.ttft_ms),
        _times(run.token_ms),
        _times(run.tokens_per_s),
        "–" if run.peak_bytes is None else binary(run.peak_bytes),
        binary(run.kv_bytes),
    )


def _times(span: Span) -> str:
    digits = 0 if span.value >= 100 else 1 if span.value >= 10 else 2
    return f"{span.value:.{digits}f} [{span.low:.{digits}f}, {span.high:.{digits}f}]"
