"""Views of the accuracy of one plan by group, and of a single answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from tpcal.views.formats import QUIET, TITLE, WORST, Right, binary, heading, percent, table_of

if TYPE_CHECKING:
    from tpcal.calibrate.evaluation.accuracy import Evaluation, Row
    from tpcal.calibrate.evaluation.ask import ImageAnswer
    from tpcal.calibrate.evaluation.intervals import Share


def evaluation_view(evaluation: Evaluation, *, title: str) -> RenderableType:
    """Accuracy of every group with and without the plan, and the paired difference.

    If no sample has a right answer, the share of equal answers is shown.
    """
    rows = evaluation.rows()
    overall = rows[-1]
    shown = {
        "unpruned": overall.unpruned is not None,
        "plan": overall.plan is not None,
        "difference": overall.difference is not None,
        "agreement": overall.unpruned is None and overall.agreement is not None,
    }
    names = [name for name, is_there in shown.items() if is_there]
    titles = {"unpruned": "unpruned %", "plan": "with plan %", "agreement": "same answer %"}
    table = table_of("group", Right("n"), *(Right(titles.get(name, name)) for name in names))
    table.collapse_padding = True  # or 80 columns would not hold the widest figures
    worst = _worst_row(rows[:-1])
    for row in rows if len(rows) > 2 else rows[-1:]:
        if row is overall and len(rows) > 2:
            table.add_section()
        style = TITLE if row is overall else WORST if row is worst else ""
        fine = row is overall and row.n >= 500  # fewer samples do not support a decimal
        cells = [interval(getattr(row, name), name == "difference", int(fine)) for name in names]
        table.add_row(row.group, str(row.n), *cells, style=style)
    return Group(heading(title), table, *_verdict(overall))


def _worst_row(rows: Sequence[Row]) -> Row | None:
    losing = [row for row in rows if row.difference is not None and row.difference.value < 0]
    return min(losing, key=lambda row: row.difference.value if row.difference else 0, default=None)


def _verdict(overall: Row) -> list[Text]:
    if overall.unpruned is None and overall.agreement is None:
        return [Text("The data has no answers to judge by. Name a --plan to compare with.", QUIET)]
    note = Text("In brackets: 95 % intervals; those of the difference are paired.", QUIET)
    if overall.unpruned is None or overall.plan is None or not overall.unpruned.value:
        return [note]
    kept = 100 * overall.plan.value / overall.unpruned.value
    return [note, Text(f"\nThe plan keeps {kept:.1f} % of the accuracy.")]


def interval(part: Share | None, signed: bool, digits: int) -> str:
    """`93 [91, 95]` in percent."""
    if part is None:
        return "–"
    form = f"{'+' if signed else ''}.{digits}f"
    bounds = ", ".join(format(100 * bound, form) for bound in (part.low, part.high))
    return f"{100 * part.value:{form}} [{bounds}]"


def answer_view(answer: ImageAnswer) -> RenderableType:
    """The answer, the number of tokens that were kept, and the memory of the KV cache."""
    lines: list[RenderableType] = [Text(answer.text or "(no answer)"), Text()]
    counts = answer.counts if answer.n_tokens else ()  # without an image nothing can be left
    kept = ", ".join(f"{n} from layer {layer}" for layer, n in counts)
    lines.append(Text(f"visual tokens  {answer.n_tokens}{', ' + kept if kept else ''}", QUIET))
    saved = percent(1 - answer.kv_bytes / answer.unpruned_kv_bytes)
    sizes = f"{binary(answer.kv_bytes)}, unpruned {binary(answer.unpruned_kv_bytes)}"
    lines.append(Text(f"KV cache       {sizes}, saved {saved}", QUIET))
    return Group(*lines)
