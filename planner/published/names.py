"""Plans by the names that users give them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tpcal.plans.redaction import redacted_data

if TYPE_CHECKING:
    from tpcal.plans.schema import Plan

PRESET = "preset:"


def is_preset(name: str) -> bool:
    """Whether the name is of a published schedule, not of a file."""
    return name.startswith(PRESET)


def off_budget(name: str) -> str:
    """The name of the schedule as published: what a budget does to it depends on the model."""
    return name.partition("@")[0] if is_preset(name) else name


def read_plan(name: str, n_layers: int | None = None, n_tokens: int | None = None) -> Plan:
    """The plan in a file, or the published schedule called `preset:NAME` or `preset:NAME@BUDGET`.

    Credentials that an earlier version wrote into a plan's provenance are left out.

    Args:
        name: Path or preset.
        n_layers: Depth that a preset is scaled to.
        n_tokens: Visual tokens of a prompt, for which a preset is put on a budget.

    Raises:
        UsageError: There is no such plan or preset, or it cannot be read.
        PlanError: It breaks the rules of the format.
        BudgetError: The preset cannot be that cheap.
    """
    from tpcal.plans.plan_file import load_plan, load_preset

    if not is_preset(name):
        plan = load_plan(name)
        return replace(plan, provenance=redacted_data(plan.provenance))
    preset, at, budget = name.removeprefix(PRESET).partition("@")
    published = load_preset(preset, n_layers)
    if not at:
        return published
    from tpcal.planner.published.at_budget import N_TOKENS, at_budget
    from tpcal.planner.published.other_tools import share_kept

    assert published.model is not None, "presets name their depth"
    depth = published.model.n_layers
    return at_budget(preset, share_kept(budget), depth, n_tokens or N_TOKENS)
