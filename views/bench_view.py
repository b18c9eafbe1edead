"""View of `tpcal bench`: times and memory of plans and the unpruned model, by cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.formats import binary, count, percent
from tpcal.views.tables import QUIET, WORST, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.bench.bench_results import BenchResults, CellResult, RunResult
    from tpcal.calibrate.bench.ratios import Spread

_TITLES = ("", "first token", "decoder", "per token", "tokens/s", "peak", "KV")
_WIDTHS = (20, 11, 7, 11, 8, 8, 8)
_NAME = 20
_PART_OF = {"ttft": 1, "token": 3, "throughput": 4}
"""Column of each measure by which a plan can be slower."""


@dataclass(frozen=True)
class Page:
    """The contents of the output of `tpcal bench`."""

    subject: tuple[str, ...]
    """Description of the model, as lines."""
    results: BenchResults

    @property
    def verdict(self) -> str:
        """The conclusion at the end of the page."""
        results = self.results
        if results.slower:
            return "\n".join(results.slower)
        most, cells = results.hidden_slowdown, count(len(results.cells), "cell")
        noise = f"; noise could hide up to {percent(most.share)} ({most.where})" if most else ""
        return f"Nowhere slower than unpruned beyond noise, in {cells}{noise}."

    @property
    def machine_line(self) -> str:
        """The device, attention kernel and versions as one line."""
        m = self.results.machine
        versions = f"tpcal {m.tpcal}, torch {m.torch}, transformers {m.transformers}"
        threads = count(m.threads, "thread")
        return f"{m.device}, {threads}, {m.dtype}, {m.attention} attention; {versions}; {m.system}"

    @property
    def note(self) -> str:
        """The explanation of the columns."""
        return (
            f"Milliseconds, medians of {self.results.repeats} repeats ± half of their middle "
            "half; × is the ratio to unpruned in the same repeat. first token: all that a user "
            "waits for; decoder: its part of that. peak: most memory held beyond the weights, the "
            "KV cache included. KV: bytes of the cache at the end."
        )


def bench_view(page: Page) -> RenderableType:
    """A table for each cell, followed by their explanation and the conclusion."""
    parts: list[RenderableType] = [heading(page.subject[0])]
    parts += [Text(line, style=QUIET) for line in (*page.subject[1:], page.machine_line)]
    for cell in page.results.cells:
        parts += [Text(), Text(f"{cell.title}, {cell.n_new} new"), _table(cell)]
    parts += [Text(), Text(page.note, style=QUIET)]
    if not page.results.slower:
        parts += [Text(), Text(page.verdict)]  # a slower one is the error that follows
    return Group(*parts)


def _table(cell: CellResult) -> Table:
    table = table_of(*(Right(title) if title else title for title in _TITLES))
    table.padding = (0, 0)
    for column, width in zip(table.columns, _WIDTHS, strict=True):
        column.width = width
    table.columns[0].no_wrap, table.columns[0].overflow = True, "ellipsis"
    table.add_row(_short(cell.unpruned.name), *_values(cell.unpruned))
    for run in cell.plans:
        table.add_row(_short(run.name), *_values(run))
        marked = {_PART_OF[name] for name in run.slower}
        cells = enumerate(("  to unpruned", *_ratios(run, cell)))
        table.add_row(*(Text(c, style=WORST if at in marked else QUIET) for at, c in cells))
    return table


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"


def _values(run: RunResult) -> Iterator[str]:
    yield _spread(run.ttft_ms)
    yield _number(run.decoder_ms.median)
    yield _spread(run.token_ms)
    yield _number(run.tokens_per_s.median)
    yield "–" if run.peak_bytes is None else binary(run.peak_bytes)
    yield binary(run.kv_bytes)


def _ratios(run: RunResult, cell: CellResult) -> Iterator[str]:
    first, token, rate = (run.ratios[name] for name in ("ttft", "token", "throughput"))
    yield f"×{first.median:.2f} ±{first.half:.2f}"
    yield f"×{run.decoder_ratio.median:.2f}" if run.decoder_ratio else "–"
    yield f"×{token.median:.2f} ±{token.half:.2f}"
    yield f"×{rate.median:.2f}"
    peaks = run.peak_bytes, cell.unpruned.peak_bytes
    yield f"×{peaks[0] / peaks[1]:.2f}" if peaks[0] is not None and peaks[1] else "–"
    yield f"×{run.kv_bytes / cell.unpruned.kv_bytes:.2f}"


def _spread(spread: Spread) -> str:
    """`12.3 ±0.4`, with the spread rounded like the median."""
    from tpcal.calibrate.bench.ratios import digits_of

    return f"{_number(spread.median)} ±{spread.half:.{digits_of(spread.median)}f}"


def _number(value: float) -> str:
    from tpcal.calibrate.bench.ratios import digits_of

    return f"{value:.{digits_of(value)}f}"


def bench_markdown(page: Page) -> str:
    """The results as one table in Markdown, with ratios in brackets."""
    titles = ("prompts", "", *_TITLES[1:])
    lines = [_line(titles), _line(["---", "---", *["---:"] * (len(titles) - 2)])]
    for cell in page.results.cells:
        lines.append(
            _line([f"{cell.title}, {cell.n_new} new", "unpruned", *_values(cell.unpruned)])
        )
        for run in cell.plans:
            marked = {_PART_OF[name] for name in run.slower}
            pairs = enumerate(zip(_values(run), _ratios(run, cell), strict=True), 1)
            both = [f"{v} ({r})" + ", slower" * (at in marked) for at, (v, r) in pairs]
            lines.append(_line(["", run.name, *both]))
    subject = "\n".join(f"{line}  " for line in (*page.subject, page.machine_line))
    return f"{subject}\n\n" + "\n".join(lines) + f"\n\n{page.note}\n\n{page.verdict}\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
