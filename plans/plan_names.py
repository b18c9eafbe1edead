"""Plans by name: files and published schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tpcal.plans.redaction import redacted_data

if TYPE_CHECKING:
    from tpcal.plans.schema import Plan

PRESET = "preset:"


def is_preset(name: str) -> bool:
    """Whether the name is that of a published schedule instead of a file."""
    return name.startswith(PRESET)


def off_budget(name: str) -> str:
    """The name without its budget, whose effect on the schedule depends on the model."""
    return name.partition("@")[0] if is_preset(name) else name


def read_plan(name: str, n_layers: int | None = None, n_tokens: int | None = None) -> Plan:
    """The plan in a file, or the published schedule `preset:NAME` or `preset:NAME@BUDGET`.

    Credentials that an earlier version wrote into the provenance of a plan are removed.

    Example::

        read_plan("preset:dart-128@0.22", n_layers=32, n_tokens=576)

    Args:
        name: Path of a plan file, or name of a preset.
        n_layers: Decoder layers that a preset is scaled to; None keeps the published depth.
        n_tokens: Visual tokens of a prompt for a preset with a budget; None means 576.

    Raises:
        UsageError: If there is no such plan or preset, or it cannot be read.
        PlanError: If the file breaks the rules of the plan format.
        BudgetError: If the preset costs more than its budget at every scale.
    """
    from tpcal.plans.plan_file import load_plan, load_preset

    if not is_preset(name):
        plan = load_plan(name)
        return replace(plan, provenance=redacted_data(plan.provenance))
    preset, at, budget = name.removeprefix(PRESET).partition("@")
    published = load_preset(preset, n_layers)
    if not at:
        return published
    from tpcal.plans.published.at_budget import N_TOKENS, at_budget
    from tpcal.plans.published.other_tools import share_kept

    assert published.model is not None, "presets name their depth"
    depth = published.model.n_layers
    return at_budget(preset, share_kept(budget), depth, n_tokens or N_TOKENS)
