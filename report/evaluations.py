"""Accuracy against cost, as `tpcal eval` measured it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpcal.plans.errors import FitError
from tpcal.report.figures import Chart, Section, Table, figure, rounded
from tpcal.report.labels import placed
from tpcal.report.style import BLUE, INK, QUIET, axis, frame, plain
from tpcal.views.words import percent

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.report.reading import Compared, Entry, Evaluated, Span

WIDTH, HEIGHT = 900, 300
"""Pixels inside the axes, as far as names are placed by them."""
KINDS = {
    "plan": ("plan", BLUE, "circle"),
    "preset": ("published", INK, "square"),
    "control": ("control", QUIET, "x"),
}
APART = 16
"""Pixels between entries of one cost."""
SMALL = 0.05


def check_model(evaluated: Evaluated, name: str, profile: Profile) -> None:
    """Nothing, where the evaluation is of the profile's model.

    Raises:
        FitError: It is of another one.
    """
    if evaluated.fingerprint not in (None, profile.model.fingerprint):
        raise FitError(name, [f"made with {evaluated.model}; the profile is of another model."])


def evaluations(evaluated: Evaluated) -> Section:
    """The section of an evaluation."""
    has_answers = evaluated.unpruned is not None
    what = "accuracy" if has_answers else "agreement with the unpruned model"
    parts: list[Chart | Table] = [_chart(evaluated, what)] if evaluated.entries else []
    parts += [_entries(evaluated), _groups(evaluated, what)]
    parts += [_tests(evaluated.tests)] if evaluated.tests else []
    return Section(
        "evaluation",
        "Answers, measured",
        _lead(evaluated, what),
        f"On {evaluated.data}. Bars and brackets are 95 % intervals; differences are paired, "
        "sample by sample. Costs are means over these samples; where several entries cost the "
        "same, they are drawn a little apart. Controls choose blindly at the cost of a plan.",
        tuple(parts),
    )


def _lead(evaluated: Evaluated, what: str) -> str:
    before = evaluated.unpruned
    text = [f"Unpruned, {percent(before.value)} of the answers are right."] if before else []
    for entry in evaluated.entries:
        value = _value(entry)
        if entry.kind == "plan" and value:
            worst = f"; its worst group is “{entry.worst[0]}”" if entry.worst else ""
            much = f"{percent(value.value)} {what} at keep {entry.keep:.3f}"
            text.append(f"{entry.name} has {much}{worst}.")
    if evaluated.tests:
        n = sum(test.p_adjusted < SMALL for test in evaluated.tests)
        text.append(
            f"{n} of {len(evaluated.tests)} paired comparisons {'is' if n == 1 else 'are'} beyond "
            f"chance (p below {SMALL:g} after correction for their number)."
        )
    return " ".join(text)


def _value(entry: Entry) -> Span | None:
    return entry.accuracy or entry.agreement


def _chart(evaluated: Evaluated, what: str) -> Chart:
    spans = [_value(e) for e in evaluated.entries] + [evaluated.unpruned]
    lows, highs = [s.low for s in spans if s], [s.high for s in spans if s]
    low, high = max(0.0, min(lows, default=0) - 0.03), min(1.0, max(highs, default=1) + 0.03)
    keeps = [entry.keep for entry in evaluated.entries]
    right = min(1.02, 1.5 * max(keeps))
    places = _apart(keeps, APART * right / WIDTH)
    spots = [
        (x / right * WIDTH, (s.value - low) / ((high - low) or 1) * HEIGHT) if s else (-1.0, -1.0)
        for x, s in zip(places, spans, strict=False)
    ]
    sides = placed([e.name for e in evaluated.entries], spots, [], WIDTH)
    drawn = list(zip(evaluated.entries, places, sides, strict=True))
    own = {kind: [one for one in drawn if one[0].kind == kind] for kind in KINDS}
    data = [_points(kind, those) for kind, those in own.items() if those]
    shapes, notes = _unpruned(evaluated.unpruned)
    layout = frame(
        400,
        xaxis=axis("layer-average keep", range=[0, right]),
        yaxis=axis(what, range=[low, high], tickformat=".0%"),
        shapes=shapes,
        annotations=notes,
    )
    rows = tuple(
        (e.name, KINDS[e.kind][0], f"{e.keep:.4f}", _span(_value(e))) for e in evaluated.entries
    )
    return Chart(
        "evaluation",
        f"{what[0].upper()}{what[1:]} against layer-average keep",
        f"Points with intervals: {what} of plans, published schedules and controls by cost.",
        figure(data, layout),
        Table(f"{what} against cost", ("entry", "what", "keep", what), rows, n_text=2),
    )


def _apart(keeps: Sequence[float], step: float) -> list[float]:
    """The keeps, those within a step of each other spread around their middle."""
    found, order = list(keeps), sorted(range(len(keeps)), key=keeps.__getitem__)
    while order:
        near = [i for i in order if keeps[i] - keeps[order[0]] <= step]
        order = order[len(near) :]
        middle = sum(keeps[i] for i in near) / len(near)
        for place, i in enumerate(sorted(near)):
            found[i] = middle + (place - (len(near) - 1) / 2) * step if near[1:] else keeps[i]
    return found


def _points(kind: str, own: Sequence[tuple[Entry, float, str | None]]) -> dict[str, Any]:
    name, colour, symbol = KINDS[kind]
    known = [(entry, x, span, side) for entry, x, side in own if (span := _value(entry))]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [rounded(x) for _, x, _, _ in known],
        "y": [rounded(s.value) for _, _, s, _ in known],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [rounded(s.high - s.value) for _, _, s, _ in known],
            "arrayminus": [rounded(s.value - s.low) for _, _, s, _ in known],
            "color": colour,
            "thickness": 1,
            "width": 3,
        },
        "text": [plain(e.name) if side else "" for e, _, _, side in known],
        "textposition": [side or "middle right" for _, _, _, side in known],
        "textfont": {"size": 10, "color": QUIET},
        "customdata": [[plain(e.name), f"{e.keep:.3f}"] for e, _, _, _ in known],
        "marker": {"color": colour, "symbol": symbol, "size": 10},
        "hovertemplate": "%{customdata[0]}<br>keep %{customdata[1]}, %{y:.1%}<extra></extra>",
    }


def _unpruned(share: Span | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if share is None:
        return [], []
    across = {"xref": "paper", "x0": 0, "x1": 1}
    line = {"type": "line", **across, "y0": share.value, "y1": share.value}
    dotted = {**line, "line": {"color": INK, "width": 1, "dash": "dot"}}
    words = {"xref": "paper", "x": 1, "xanchor": "right", "y": share.value, "yanchor": "bottom"}
    return [dotted], [{**words, "text": "unpruned", "showarrow": False, "font": {"size": 11}}]


def _entries(evaluated: Evaluated) -> Table:
    head = ("entry", "what", "keep", "FLOPs", "KV cache", "accuracy", "difference")
    rows = [("unpruned", "", "1", "100 %", "100 %", _span(evaluated.unpruned), "", "", "")]
    rows += [
        (
            *(e.name, KINDS[e.kind][0], f"{e.keep:.4f}"),
            *(percent(e.prefill_flops), percent(e.kv_bytes)),
            *(_span(e.accuracy), _span(e.difference, signed=True), _span(e.agreement)),
            f"{e.worst[0]} {percent(e.worst[1])}" if e.worst else "–",
        )
        for e in evaluated.entries
    ]
    caption = "Cost as shares of the unpruned model, and answers"
    return Table(caption, (*head, "same answer as unpruned", "worst group"), tuple(rows), n_text=2)


def _groups(evaluated: Evaluated, what: str) -> Table:
    head = ("group", "unpruned", *(entry.name for entry in evaluated.entries))
    rows = [
        (g, _short(before), *(_short(entry.groups.get(g)) for entry in evaluated.entries))
        for g, before in evaluated.groups.items()
    ]
    return Table(f"{what[0].upper()}{what[1:]} by group", head, tuple(rows))


def _tests(tests: Sequence[Compared]) -> Table:
    head = ("comparison", "of", "difference", "changed answers", "p", "p adjusted")
    rows = tuple(
        (
            f"{t.one} − {t.other}",
            t.measure,
            _span(t.difference, signed=True),
            str(t.n_changed),
            _p(t.p),
            _p(t.p_adjusted),
        )
        for t in tests
    )
    clear = frozenset(i for i, t in enumerate(tests) if t.p_adjusted < SMALL)
    caption = f"Paired tests; bold where the adjusted p is below {SMALL:g}"
    return Table(caption, head, rows, n_text=2, strong=clear)


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _short(share: Span | None) -> str:
    return "–" if share is None else percent(share.value)


def _span(share: Span | None, signed: bool = False) -> str:
    """`93.1 % [91.0, 95.2]`"""
    if share is None:
        return "–"
    form = "+.1f" if signed else ".1f"
    shares = (share.value, share.low, share.high)
    value, low, high = (f"{round(100 * x, 1) + 0.0:{form}}" for x in shares)  # no -0.0
    return f"{value} % [{low}, {high}]".replace("-", "−")
