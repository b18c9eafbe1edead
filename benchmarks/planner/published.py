"""Published schedules on the decoder that is measured, at the layers that were printed."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.planner import world
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import ModelIdentity, Plan
from tpcal.plans.published.at_budget import on_budget

AS_DEEP = 28
"""Layers of the shallowest decoder that a schedule was published for; the deepest has 32."""
SCHEDULES = {
    "BTP": "btp-llava-released",
    "BTP, paper's keeps": "btp-llava-paper",
    "DART": "dart-128",
    "DART before the decoder": "dart-embedding",
    "ToDRE": "todre-25",
    "FastV": "fastv",
    "PyramidDrop": "pyramiddrop",
    "DivPrune": "divprune",
    "CDPruner": "cdpruner",
    "VTW": "vtw",
}
"""Presets by the names of their methods in tables."""


def as_printed(preset: str, n_layers: int) -> bool:
    """Whether the schedule cuts at the printed layers: the decoder is as deep, and has them."""
    return n_layers >= AS_DEEP and load_preset(preset).cuts[-1].layer < n_layers


def placed(preset: str, n_layers: int) -> Plan:
    """The schedule as printed; in a shallower decoder, at the same relative depths."""
    if not as_printed(preset, n_layers):
        return load_preset(preset, n_layers)
    return replace(load_preset(preset), model=ModelIdentity(n_layers))


def at_budget(method: str, target: float) -> Plan:
    """The method's schedule on the measured model, its keeps scaled to the budget.

    Raises:
        BudgetError: The schedule costs more.
    """
    n_layers = world.n_layers()
    return on_budget(placed(SCHEDULES[method], n_layers), target, n_layers, world.n_tokens())
