"""View of a plan: its schedule, cost, loss and certificate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.formats import (
    MERGE_TEXTS,
    SCOPE_TEXTS,
    arrows,
    binary,
    certificate_text,
    count,
    cut_details,
    cut_text,
    exact_percent,
    milliseconds,
    nats,
    percent,
    si,
    sizes_text,
)
from tpcal.plans.input_sizes import KEY, read_input_sizes
from tpcal.plans.plan_records import OWN, Cut, Loss, Plan
from tpcal.plans.record_reader import Reader
from tpcal.views.tables import CUT, MAX_ROWS, QUIET, WORST, Right, bar, heading, table_of

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Cost


OWN_TEXT = "Measured on the samples that chose the plan, so the loss on others is likely larger."


_POINT = ("layer_average_keep", "loss")
"""What the provenance says of a plan on the front."""


def plan_view(plan: Plan, *, title: str, n_layers: int | None = None) -> RenderableType:
    """The plan as a chart by layer, its cost, its loss by group and its origin.

    Args:
        plan: Plan to show.
        title: Name of its file or preset.
        n_layers: Number of layers to draw if the plan names no model.
    """
    parts: list[RenderableType] = [heading(plan_title(plan, title))]
    depth = plan.model.n_layers if plan.model else n_layers
    n_tokens = plan.cost.n_tokens if plan.cost else None
    parts += [schedule_chart(plan, depth, n_tokens) if depth else cut_table(plan.cuts)]
    parts += [Text(detail, style=QUIET) for cut in plan.cuts if (detail := cut_details(cut))]
    if plan.cuts:
        parts += [Text(SCOPE_TEXTS[plan.scope], style=QUIET)]
    if plan.cuts and plan.merge:
        parts += [Text(MERGE_TEXTS[plan.merge], style=QUIET)]
    if plan.cost:
        parts += [Text(), cost_table(plan, plan.cost)]
    elif depth:
        parts += [Text(), Text(f"Layer-average keep {average_keep(plan, depth):.4f}")]
    if plan.loss and (plan.loss.predicted or plan.loss.measured):
        parts += [Text(), loss_table(plan.loss), *limits_line(plan, plan.loss)]
    if plan.provenance.get("measured_on") == OWN:
        parts += [Text(OWN_TEXT, style=QUIET)]
    if plan.proven:
        parts += [Text(), Text(certificate_text(plan.proven))]
    return Group(*parts, *footer(plan))


def plan_title(plan: Plan, title: str) -> str:
    """The heading with file, model and depth."""
    parts = [title]
    if plan.name and plan.name not in title:
        parts.append(plan.name)
    if plan.model and plan.model.name:
        parts.append(f"for {plan.model.name}")
    if plan.model:
        parts.append(count(plan.model.n_layers, "layer"))
    return " · ".join([*parts, count(len(plan.cuts), "cut")])


def average_keep(plan: Plan, n_layers: int) -> float:
    """Layer-average keep of a plan for an image of very many tokens."""
    from tpcal.plans.cost import layer_average_keep

    return layer_average_keep(plan.schedule(10_000, n_layers), 10_000)


def schedule_chart(plan: Plan, n_layers: int, n_tokens: int | None) -> Table:
    """One bar of visual tokens for each layer, or for each run of layers of a deep decoder."""
    total = n_tokens or 100
    schedule = plan.schedule(total, n_layers)
    cuts = {cut.layer: cut for cut in plan.cuts}
    table = table_of(Right("layer"), Right("tokens" if n_tokens else "tokens %"), "", "cut")
    for layers in _runs(schedule, cuts, n_layers):
        first, last = layers[0], layers[-1]
        cut = cuts.get(first)
        style = CUT if cut else ""
        table.add_row(
            f"{first}" if first == last else f"{first}–{last}",
            Text(str(schedule[first]), style=style),
            Text(bar(schedule[first] / total), style=CUT),
            Text(cut_text(cut), style=style) if cut else "",
        )
    return table


def _runs(schedule: Sequence[int], cuts: Mapping[int, Cut], n_layers: int) -> list[list[int]]:
    if n_layers <= MAX_ROWS:
        return [[layer] for layer in range(n_layers)]
    last_cut = 0
    run_of = []
    for layer in range(n_layers):
        last_cut = layer if layer in cuts else last_cut
        run_of.append(last_cut)
    return [list(run) for _, run in groupby(range(n_layers), key=run_of.__getitem__)]


def cut_table(cuts: Iterable[Cut]) -> Table:
    """The cuts of a plan without a known depth."""
    table = table_of(Right("layer"), "cut")
    for cut in cuts:
        table.add_row(str(cut.layer), cut_text(cut))
    return table


def cost_table(plan: Plan, cost: Cost) -> Table:
    """The cost of one prompt with the plan and unpruned, and the share that is saved."""
    table = table_of("cost of one prompt", Right("with plan"), Right("unpruned"), Right("saved"))

    def named(text: str, kind: str | None = None) -> str:
        asked = plan.budget is not None and plan.budget.kind == kind
        return f"{text} (budget {plan.budget.target:g})" if asked and plan.budget else text

    table.add_row(
        named("layer-average keep"),
        f"{cost.layer_average_keep:.4f}",
        "1",
        percent(1 - cost.layer_average_keep),
    )
    table.add_row("tokens after each cut", arrows(cost.counts), str(cost.n_tokens), "")
    flops = _pair(cost.prefill_flops, cost.unpruned_prefill_flops, si)
    table.add_row(named("prefill FLOPs", "flops"), *flops)
    table.add_row(named("KV cache", "kv"), *_pair(cost.kv_bytes, cost.unpruned_kv_bytes, binary))
    if cost.prefill_ms is not None and cost.unpruned_prefill_ms is not None:
        times = _pair(cost.prefill_ms, cost.unpruned_prefill_ms, milliseconds)
        table.add_row(named("prefill of the decoder", "ms"), *times)
    return table


def _pair(pruned: float, full: float, form: Any) -> tuple[str, str, str]:
    return form(pruned), form(full), percent(1 - pruned / full) if full else ""


def loss_table(loss: Loss) -> Table:
    """The loss of every group with the worst one marked; measured if possible, else predicted."""
    decisive = loss.measured or loss.predicted
    worst = max(decisive, key=lambda group: decisive[group])
    titles = {
        "predicted": "predicted",
        "measured": "measured",
        "changed": "answers changed",
        "flips": "tokens changed",
    }
    shown = [name for name in titles if getattr(loss, name)]
    table = table_of("loss in nats", *(Right(titles[name]) for name in shown), "")
    for group in dict.fromkeys([*loss.predicted, *loss.measured, *loss.changed, *loss.flips]):
        cells = [_cell(getattr(loss, name).get(group), name) for name in shown]
        if group in loss.margin and "measured" in shown:
            cells[shown.index("measured")] += f" ± {nats(loss.margin[group])}"
        marked = group == worst
        table.add_row(group, *cells, "◂ worst" if marked else "", style=WORST if marked else "")
    return table


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of the provenance, which may hold anything; empty if it is no mapping."""
    return value if isinstance(value, Mapping) else {}


def limits_line(plan: Plan, loss: Loss) -> list[Text]:
    """The group that limits the plan, and its limits; empty if there is only one group."""
    losses = loss.measured or loss.predicted
    weights = mapping(plan.provenance.get("weights"))
    words = []
    if len(losses) > 1:
        group = max(losses, key=lambda g: losses[g] * weights.get(g, 1.0))
        counts = f" (counts {weights[group]:g} times)" if group in weights else ""
        words.append(f"Limited by {group}{counts}, which loses {nats(losses[group])} nats")
    if loss.max_loss is not None:
        words.append(f"at most {loss.max_loss:g} nats were allowed")
    if loss.max_flips is not None:
        what = "answer tokens" if loss.flips else "answers"
        words.append(f"at most {exact_percent(loss.max_flips)} of the {what} may change")
    return [Text(f"{text[:1].upper()}{text[1:]}.")] if (text := "; ".join(words)) else []


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    return percent(value) if name in ("changed", "flips") else nats(value)


def footer(plan: Plan) -> list[RenderableType]:
    """The source of a published schedule, or the inputs and the command that made the plan."""
    lines: list[RenderableType] = []
    if plan.source:
        lines.append(Text(f"Source: {plan.source}", style=QUIET))
    for name, point in mapping(plan.provenance.get("front")).items():
        if not all(isinstance(mapping(point).get(key), int | float) for key in _POINT):
            continue
        keep, loss = (point[key] for key in _POINT)
        where = " on the samples of the search" if plan.loss and plan.loss.measured else ""
        lines.append(Text(f"Next {name} on the front: keep {keep:.4f}, {loss:.4g} nats{where}"))
    sizes = read_input_sizes(Reader(), plan.provenance.get(KEY))
    if sizes:
        lines.append(Text(f"Calibrated on {sizes_text(sizes)}", style=QUIET))
    if "command" in plan.provenance:
        lines.append(Text(f"Made by: {plan.provenance['command']}", style=QUIET))
    return [Text(), *lines] if lines else []
