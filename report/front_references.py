"""References for a front: published schedules and controls, measured or predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpcal.plans.errors import BudgetError
from tpcal.plans.plan_records import Cut, n_keep

if TYPE_CHECKING:
    from tpcal.report.inputs import Material

CONTROLS = ("random", "grid")
"""Selectors that do not look at the tokens, which a plan has to beat."""


@dataclass(frozen=True)
class Mark:
    """A reference that is marked in the chart."""

    name: str
    kind: str
    """``preset`` or ``control``."""
    keep: float
    loss: float
    measured: bool


def presets(material: Material) -> tuple[Mark, ...]:
    """The published schedules that searches measured, and predictions of all as published."""
    from tpcal.planner.search.front import point
    from tpcal.plans.plan_file import load_preset
    from tpcal.plans.plan_file import presets as names

    predictor, limits = material.predictor, material.predictor.limits
    found = [
        Mark(material.names[p.cuts], "preset", p.layer_average_keep, p.loss, True)
        for p in (m.point for m in material.known)
        if p.cuts in material.names
    ]
    for name in names():
        cuts = load_preset(name, limits.n_layers).cuts
        if all(cut.layer <= limits.last_layer for cut in cuts):
            as_is = point(predictor, cuts)
            found.append(Mark(name, "preset", as_is.layer_average_keep, as_is.loss, False))
    return tuple(found)


def controls(material: Material) -> Iterator[Mark]:
    """Single cuts of the controls before the decoder, at every probed keep."""
    profile, predictor = material.profile, material.predictor
    for probe in profile.probes:
        if (
            probe.layer == 0
            and probe.selector in CONTROLS
            and n_keep(probe.keep, profile.n_tokens)
        ):
            cut = Cut(0, probe.keep, probe.selector, probe.params)
            loss = predictor.score([cut])  # exact for a single cut that was probed
            keep = n_keep(probe.keep, profile.n_tokens) / profile.n_tokens
            yield Mark(str(probe.selector), "control", keep, loss, material.same_samples)


def best_published(material: Material, average: float) -> tuple[str, float] | None:
    """The published schedule with the smallest predicted loss at a layer average, and the loss."""
    from tpcal.plans.plan_file import presets as names
    from tpcal.plans.published.at_budget import at_budget

    predictor, limits, found = material.predictor, material.predictor.limits, []
    for name in names() if average > 0 else ():
        try:
            plan = at_budget(name, average, limits.n_layers, limits.n_tokens)
        except BudgetError:
            continue
        if all(cut.layer <= limits.last_layer for cut in plan.cuts):
            found.append((name, predictor.score(plan.cuts)))
    return min(found, key=lambda one: one[1], default=None)
