"""Views of lists: published schedules and selectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from tpcal.plans.formats import parameter
from tpcal.plans.plan_file import SHORT_PRESETS
from tpcal.plans.plan_records import Cut, Plan
from tpcal.views.plan_view import average_keep
from tpcal.views.tables import Right, table_of

if TYPE_CHECKING:
    pass


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
            name, first.rstrip("."), ", ".join(f"{key} {parameter(v)}" for key, v in values)
        )
    return table
