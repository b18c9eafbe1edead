"""Views of lists: published schedules, selectors, and the results of the laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcal.plans.plan_file import SHORT_PRESETS
from tpcal.plans.schema import Cut, Plan
from tpcal.views.formats import QUIET, WORST, Right, heading, table_of
from tpcal.views.plan_view import _value, average_keep

if TYPE_CHECKING:
    from tpcal.plans.laws import Verdict


def preset_table(presets: Mapping[str, Plan]) -> Table:
    """A table of the published schedules with depth, layer-average keep and cuts."""
    table = table_of("preset", Right("layers"), Right("average keep"), "cuts as layer:keep")
    for name, plan in presets.items():
        assert plan.model is not None, name
        depth = plan.model.n_layers
        average = f"{average_keep(plan, depth):.4f}"
        table.add_row(name, str(depth), average, ", ".join(map(_short_cut, plan.cuts)))
    short = ", ".join(f"{name} = {meant}" for name, meant in SHORT_PRESETS.items())
    table.caption = (
        f"* only where the text looks at the image little; counted as not firing\nShort: {short}"
    )
    table.caption_justify = "left"
    return table


def _short_cut(cut: Cut) -> str:
    return f"{cut.layer}:{cut.keep:.3g}" + "*" * (cut.condition is not None)


def selector_table(names: Sequence[str]) -> Table:
    """A table of the selectors with what they keep and their parameters."""
    from importlib import import_module

    from tpcal.plans.selectors import parameters

    table = table_of("selector", "keeps", "parameters and defaults")
    for name in names:
        doc = import_module(f"tpcal.plans.selectors.{name}").__doc__ or ""
        first = doc.strip().splitlines()[0].removeprefix(f"{name}: ").removeprefix("keep ")
        values = parameters(name).items()
        table.add_row(
            name, first.rstrip("."), ", ".join(f"{key} {_value(v)}" for key, v in values)
        )
    return table


def laws_view(verdicts: Sequence[Verdict], *, title: str) -> RenderableType:
    """A table of the laws, whether each holds, and what was measured."""
    table = table_of("law", "holds", "what it says and what was measured")
    for verdict in verdicts:
        holds = {True: Text("yes"), False: Text("NO", style=WORST), None: Text("–", style=QUIET)}
        said = Text.assemble(verdict.law.says, "\n", (f"{verdict.detail}", QUIET))
        table.add_row(verdict.law.name, holds[verdict.holds], said)
    n_held = sum(verdict.holds is True for verdict in verdicts)
    n_tried = sum(verdict.holds is not None for verdict in verdicts)
    summary = f"{n_held} of {n_tried} laws hold."
    if n_tried < len(verdicts):
        summary += f" {len(verdicts) - n_tried} say nothing about this model (–)."
    note = (
        "Differences are of logits. Allowed is four times what rounding alone changes in this "
        "model without a plan: measured by moving every number that its modules give as rounding "
        "may move it, by chance; in half precision by batching, where that changes less."
    )
    return Group(heading(title), table, Text(), Text(summary), Text(note, style=QUIET))
