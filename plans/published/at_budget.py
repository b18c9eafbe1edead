"""Published schedules, scaled to a given budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tpcal.plans.budget_projection import Limits, project, spent
from tpcal.plans.cost import layer_average_keep
from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.plan_file import load_preset
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan, ReachedBudget, n_keep
from tpcal.plans.selectors import can_cut

N_TOKENS = 576
"""Default number of visual tokens: that of LLaVA-1.5, for which most presets were made."""
SMALLEST_SCALE = 0.25
"""Layers stay as published as long as this share of the published keeps meets the budget."""


def at_budget(name: str, target: float, n_layers: int, n_tokens: int = N_TOKENS) -> Plan:
    """The preset with its keeps scaled so that it costs ``target``.

    The cuts stay at their relative depths if a quarter of their keeps or more meets the budget.
    Otherwise all cuts move to earlier layers in proportion, by as few layers as needed and never
    to a layer at which their selector cannot work; then the keeps shrink as far as needed. A cut
    that would keep all tokens is left out. A schedule that only drops all tokens changes its
    layer, and meets the budget to within one layer. Conditional cuts stay and are counted as not
    firing. No selector changes.

    Example::

        at_budget("fastv", 0.3, n_layers=28)

    Args:
        name: One of `tpcal.plans.plan_file.presets`.
        target: Layer average of keep, in (0, 1]; met to within one token from below.
        n_layers: Decoder layers of the model.
        n_tokens: Visual tokens of a prompt.

    Returns:
        The plan with the name ``name@target``. Its budget holds the target and the reached value;
        its source states which cuts changed.

    Raises:
        UsageError: If there is no such preset, or ``target`` is not in (0, 1].
        BudgetError: If the schedule costs more than that; it carries the smallest possible cost.
    """
    return on_budget(replace(load_preset(name, n_layers), name=name), target, n_layers, n_tokens)


def on_budget(plan: Plan, target: float, n_layers: int, n_tokens: int = N_TOKENS) -> Plan:
    """A published schedule on the layers it names, with its keeps scaled as in `at_budget`.

    `at_budget` first moves the layers to the same relative depths; this function does not.

    Args:
        plan: The schedule; its layers exist in the decoder.
        target: As in `at_budget`.
        n_layers: As in `at_budget`.
        n_tokens: As in `at_budget`.

    Raises:
        UsageError: If ``target`` is not in (0, 1].
        BudgetError: As in `at_budget`.

    Example:
        >>> from tpcal import load_preset
        >>> from tpcal.plans.published.at_budget import on_budget
        >>> [cut.layer for cut in on_budget(load_preset("pyramiddrop"), 0.4, n_layers=30).cuts]
        [8, 16, 24]
    """
    if not 0 < target <= 1:  # also catches nan
        raise UsageError(f"budget must be in (0, 1]; got {target}.")
    cuts = _met(f"preset {plan.name}", plan.cuts, target, n_layers, n_tokens)
    # Record the reached budget and what moved, so that the plan states how it differs from the
    # published schedule.
    name = f"{plan.name}@{target:g}"
    made = replace(plan, name=name, cuts=cuts, model=ModelIdentity(n_layers))
    reached = layer_average_keep(made.schedule(n_tokens, n_layers), n_tokens)
    moved = f"{_listed(plan.cuts)} became {_listed(cuts)}"
    note = f"Put on a layer average of {target:g} of {n_tokens} tokens: layer:keep {moved}."
    source = note if plan.source is None else f"{plan.source} {note}"
    return replace(made, budget=ReachedBudget(target, round(reached, 6)), source=source)


def _met(
    subject: str, cuts: Sequence[Cut], target: float, n_layers: int, n_tokens: int
) -> tuple[Cut, ...]:
    # Conditional cuts are set apart, because their saving is unknown. They are appended again if
    # they still come after every other cut.
    conditional = [cut for cut in cuts if cut.condition is not None]
    cuts = [cut for cut in cuts if cut.condition is None]
    kept = [cut for cut in cuts if n_keep(cut.keep, n_tokens)]
    if not kept:
        met = _drop_alone(subject, cuts, target, n_layers)
    else:
        limits = _limits(cuts, target, n_layers, n_tokens)
        if target * n_tokens * n_layers < limits.cheapest * (1 - 1e-9):
            raise _too_little(subject, kept[0], limits, target)
        placed = _placed(cuts, target, limits)
        met = project(placed, target, n_tokens, n_layers, limits=limits)
    later = [c for c in conditional if not met or (met[-1].layer < c.layer and met[-1].keep)]
    return (*met, *later)


def _drop_alone(
    subject: str, cuts: Sequence[Cut], target: float, n_layers: int
) -> tuple[Cut, ...]:
    # Dropping all tokens before layer l costs l of L layers, so l = floor(target * L).
    layer = math.floor(target * n_layers * (1 + 1e-9))
    if cuts and layer == 0:
        least = math.ceil(1e4 / n_layers) / 1e4
        raise BudgetError(
            f"{subject} must have a budget of at least {least:.4f} on {n_layers} layers, because "
            f"it drops all tokens at once; got {target:g}. Ask for more.",
            least,
        )
    return tuple(replace(cut, layer=layer) for cut in cuts if layer < n_layers)


def _limits(cuts: Sequence[Cut], target: float, n_layers: int, n_tokens: int) -> Limits:
    """Limits that preserve the schedule: its selectors, and no drop-all if it has none."""
    drops = any(n_keep(cut.keep, n_tokens) == 0 for cut in cuts)

    def limits(first: int) -> Limits:
        first_drop = first + 1 if drops else None
        return Limits(n_tokens, n_layers, first_layer=first, first_drop=first_drop)

    # Layer 0 is the earliest place, but some selectors need the attention of a layer before. Ask
    # the selector only if the budget cannot be met from layer 1 on.
    first, *_ = cuts
    if first.layer == 0 or _meets(_placed(cuts, target, limits(1)), target, limits(1)):
        return limits(min(first.layer, 1))  # avoids loading torch to ask the selector
    assert first.selector is not None
    return limits(0 if can_cut(first.selector, first.params, 0) else 1)


def _placed(cuts: Sequence[Cut], target: float, limits: Limits) -> list[Cut]:
    """The cuts at the latest layers at which `SMALLEST_SCALE` of their keeps meets the budget."""
    # Move the first cut one layer earlier at a time, and the others in proportion, until the
    # scaled keeps meet the budget. `project` then scales the keeps themselves.
    moved = list(cuts)
    for first in range(cuts[0].layer, limits.first_layer - 1, -1):
        moved = _from_layer(cuts, first)
        if _meets(moved, target, limits):
            break
    return moved


def _meets(cuts: Sequence[Cut], target: float, limits: Limits) -> bool:
    """Whether the cuts meet the budget if their keeps are multiplied by `SMALLEST_SCALE`."""
    small = [replace(cut, keep=cut.keep * SMALLEST_SCALE) for cut in cuts]
    allowed = target * limits.n_tokens * limits.n_layers
    return spent(small, limits.n_tokens, limits.n_layers) <= allowed


def _from_layer(cuts: Sequence[Cut], first: int) -> list[Cut]:
    """The cuts moved so that the first one is before ``first``, the others in proportion.

    A cut before layer l moves to round(l * first / l_1), and at least one layer behind the cut
    before it.
    """
    scale = first / cuts[0].layer if cuts[0].layer else 1.0
    moved: list[Cut] = []
    for cut in cuts:
        layer = math.floor(cut.layer * scale + 0.5) if moved else first
        moved.append(replace(cut, layer=max(layer, moved[-1].layer + 1) if moved else layer))
    return moved


def _too_little(subject: str, first: Cut, limits: Limits, target: float) -> BudgetError:
    least = math.ceil(limits.least * 1e4) / 1e4
    needs = f"as {first.selector} reads the attention of a layer before it"
    why = needs if limits.first_layer else f"which keeps one of {limits.n_tokens} tokens"
    return BudgetError(
        f"{subject} must have a budget of at least {least:.4f} on {limits.n_layers} layers, "
        f"{why}; got {target:g}. Ask for more, or for a preset that cuts before the decoder.",
        least,
    )


def _listed(cuts: Sequence[Cut]) -> str:
    return " ".join(f"{cut.layer}:{cut.keep:.4g}" for cut in cuts) or "no cut"
