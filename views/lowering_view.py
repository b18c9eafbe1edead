"""View of `tpcal lower`: a plan beside the plan that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.formats import arrows, binary, cut_text, nats, percent, si
from tpcal.views.tables import WORST, Right, heading, table_of

if TYPE_CHECKING:
    from tpcal.plans.plan_records import Loss, Plan
    from tpcal.workflow.lowering import LoweredPlan


def lowering_view(lowered: LoweredPlan, *, title: str) -> RenderableType:
    """Cuts, costs and losses of both plans, and what the lowered plan loses more.

    Args:
        lowered: Both plans.
        title: Name of the lowered plan's file.
    """
    names = lowered.name, title
    both = lowered.original, lowered.plan
    losses = [plan.loss for plan in both if plan.loss is not None]
    return Group(
        heading(f"{title}, for the engine {lowered.plan.provenance['engine']}"),
        _costs(names, both),
        Text(),
        _loss_table(*losses),
        Text(),
        Text(summary(*losses)),
    )


def summary(before: Loss, after: Loss) -> str:
    """A sentence that says what is lost.

    Args:
        before: Loss of the plan that was lowered.
        after: Loss of the lowered plan, measured on the same samples or predicted as well.
    """
    kind = "Measured" if after.measured else "Predicted"
    worst = [max(_decisive(loss).values()) for loss in (before, after)]
    text = f"{kind}: the worst group loses {nats(worst[1])} nats instead of {nats(worst[0])}"
    if not after.changed:
        return f"{text}."
    changed = [percent(fmean(loss.changed.values())) for loss in (before, after)]
    return (
        f"{text}, and in the mean of the groups {changed[1]} of the answers change instead of "
        f"{changed[0]}."
    )


def _decisive(loss: Loss) -> Mapping[str, float]:
    return loss.measured or loss.predicted


def _costs(names: tuple[str, str], both: tuple[Plan, Plan]) -> Table:
    table = table_of("", *names)
    costs = [plan.cost for plan in both if plan.cost is not None]
    cuts = ["\n".join(f"{cut.layer}: {cut_text(cut)}" for cut in plan.cuts) for plan in both]
    table.add_row("cuts before layers", *cuts)
    table.add_row("tokens after each cut", *(arrows(cost.counts) for cost in costs))
    table.add_row("layer-average keep", *(f"{cost.layer_average_keep:.4f}" for cost in costs))
    table.add_row("prefill FLOPs", *(si(cost.prefill_flops) for cost in costs))
    table.add_row("KV cache", *(binary(cost.kv_bytes) for cost in costs))
    return table


def _loss_table(before: Loss, after: Loss) -> Table:
    with_changed = bool(after.changed)
    changed = ["changed before", "changed now"] if with_changed else []
    titles = ["nats before", "nats now", *changed]
    table = table_of("loss by group", *map(Right, titles))
    decisive = _decisive(after)
    worst = max(decisive, key=lambda group: decisive[group])
    for group, loss in decisive.items():
        cells = [nats(_decisive(before)[group]), nats(loss)]
        if with_changed:
            cells += [percent(each.changed[group]) for each in (before, after)]
        table.add_row(group, *cells, style=WORST if group == worst else "")
    return table
