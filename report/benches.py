"""Time and memory, as `tpcal bench` measured them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpcal.report.figures import Chart, Section, Table, figure, rounded
from tpcal.report.style import INK, PLANS, axis, frame, plain
from tpcal.views.words import binary, count

if TYPE_CHECKING:
    from tpcal.report.reading import Run, Span, Timed

SIZES = ("batch {}", "{} image tokens", "{} text tokens", "{} new tokens")
MEASURES = (
    ("ttft", "time to first token"),
    ("token", "time per token"),
    ("throughput", "throughput"),
)


def benches(timed: Timed) -> Section:
    """The section of a timing."""
    machine = ", ".join(f"{name} {value}" for name, value in timed.machine.items())
    charts = tuple(_chart(timed, key, title) for key, title in MEASURES if _has(timed, key))
    return Section(
        "bench",
        "Time and memory, measured",
        _lead(timed),
        f"{timed.model}, pruned and unpruned in turns on the same prompts. Bars are medians of "
        "ratios to the unpruned model, with the middle half of the repeats; left of the line at 1 "
        f"takes less time, and of throughput, right of it is better. {_same(timed)}Measured on: "
        f"{machine}.",
        (*charts, _table(timed)),
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


def _has(timed: Timed, key: str) -> bool:
    return any(key in run.ratios for cell in timed.cells for run in cell.runs)


def _chart(timed: Timed, key: str, title: str) -> Chart:
    names = list(dict.fromkeys(r.name for c in timed.cells for r in c.runs if key in r.ratios))
    data = [_bars(timed, key, i, name) for i, name in enumerate(names)]
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1}
    n_bars = len(timed.cells) * len(names)
    layout = frame(
        120 + 22 * n_bars,
        xaxis=axis("× unpruned", rangemode="tozero"),
        yaxis=axis("", type="category", autorange="reversed", showgrid=False),
        shapes=[{**line, "line": {"color": INK, "width": 1, "dash": "dot"}}],
        bargap=0.35,
    )
    rows = tuple(
        (words, run.name, _ratio(run.ratios[key]))
        for words, cell in zip(names_of(timed), timed.cells, strict=True)
        for run in cell.runs
        if key in run.ratios
    )
    return Chart(
        f"bench-{key}",
        f"{title[0].upper()}{title[1:]}, as a ratio to unpruned",
        f"Bars, one for each plan and cell: {title} as a ratio to the unpruned model.",
        figure(data, layout),
        Table(f"{title}, times unpruned", ("cell", "plan", "ratio"), rows, n_text=2),
    )


def _bars(timed: Timed, key: str, place: int, name: str) -> dict[str, Any]:
    own = [
        (words, run.ratios[key])
        for words, cell in zip(names_of(timed), timed.cells, strict=True)
        for run in cell.runs
        if run.name == name and key in run.ratios
    ]
    spans = [span for _, span in own]
    return {
        "type": "bar",
        "orientation": "h",
        "name": plain(name),
        "y": [plain(words) for words, _ in own],
        "x": [rounded(span.value) for span in spans],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(s.high - s.value) for s in spans],
            "arrayminus": [rounded(s.value - s.low) for s in spans],
            "color": INK,
            "thickness": 1,
            "width": 3,
        },
        "marker": {"color": PLANS[place % len(PLANS)][0]},
        "hovertemplate": "%{fullData.name}<br>%{y}: × %{x:.3f}<extra></extra>",
    }


def names_of(timed: Timed) -> list[str]:
    """What tells each cell from the others."""
    differ = [len({cell.sizes[i] for cell in timed.cells}) > 1 for i in range(len(SIZES))]
    differ[0] = True
    return [
        ", ".join(w.format(n) for w, n, d in zip(SIZES, cell.sizes, differ, strict=True) if d)
        for cell in timed.cells
    ]


def _same(timed: Timed) -> str:
    """A sentence on what all cells have in common."""
    sizes = [{cell.sizes[i] for cell in timed.cells} for i in range(len(SIZES))]
    same = [w.format(*n) for w, n in zip(SIZES, sizes, strict=True) if len(n) == 1]
    return f"In all cells: {', '.join(same)}. " if same else ""


def _table(timed: Timed) -> Table:
    head = (
        *("cell", "run", "first token, ms", "per token, ms", "tokens per second"),
        *("peak memory", "KV cache", "first token, × unpruned"),
    )
    named = zip(names_of(timed), timed.cells, strict=True)
    rows = tuple(_row(words, run) for words, cell in named for run in cell.runs)
    return Table(
        "Medians, and the middle half of the repeats; peak memory is beyond the weights",
        head,
        rows,
        n_text=2,
    )


def _row(cell: str, run: Run) -> tuple[str, ...]:
    return (
        cell,
        run.name,
        _times(run.ttft_ms),
        _times(run.token_ms),
        _times(run.tokens_per_s),
        "–" if run.peak_bytes is None else binary(run.peak_bytes),
        binary(run.kv_bytes),
        _ratio(run.ratios["ttft"]) if "ttft" in run.ratios else "1",
    )


def _times(span: Span) -> str:
    digits = 0 if span.value >= 100 else 1 if span.value >= 10 else 2
    return f"{span.value:.{digits}f} [{span.low:.{digits}f}, {span.high:.{digits}f}]"


def _ratio(span: Span) -> str:
    return f"{span.value:.3f} [{span.low:.3f}, {span.high:.3f}]"
