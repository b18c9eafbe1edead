"""Putting a plan on the budget within what was probed, and the plans one step away from it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.conditions import share
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.prediction.space import project
from tpcal.plans.errors import BudgetError
from tpcal.plans.schema import Cut


def fill(predictor: Predictor, cuts: Sequence[Cut], budget: Budget) -> tuple[Cut, ...]:
    """The cuts on the budget, each at a layer where its selector was probed.

    Raises:
        BudgetError: No plan is that cheap.
    """
    limits = predictor.limits
    last = _conditional(predictor, cuts)

    def at(average: float, cuts: Sequence[Cut] = cuts) -> tuple[Cut, ...]:
        met = project(cuts, average, limits.n_tokens, limits.n_layers, limits=limits)
        plan = tuple(_placed(predictor, cut) for cut in met)
        if last and all(cut.layer < last.layer and cut.keep > 0 for cut in plan):
            return (*plan, last)
        return plan

    try:
        return predictor.prices.met(budget, at, limits.least)
    except BudgetError:  # its selectors cost too much; the default one costs least
        return predictor.prices.met(budget, lambda average: at(average, ()), limits.least)


def _conditional(predictor: Predictor, cuts: Sequence[Cut]) -> Cut | None:
    """The plan's last conditional drop, where it fires for some samples and not for all."""
    limits = predictor.limits
    for cut in reversed([c for c in cuts if c.condition is not None]):
        if limits.first_drop is not None and limits.first_drop <= cut.layer <= limits.last_layer:
            part = share(predictor.profile, cut)
            return cut if cut.keep == 0 and 0 < part < 1 else None
    return None


def _placed(predictor: Predictor, cut: Cut) -> Cut:
    if cut.selector is None or cut.layer >= first_layer(predictor, cut.selector, cut.params):
        return cut
    default = predictor.limits.default
    return replace(cut, selector=default.selector, params=default.params)


def first_layer(predictor: Predictor, selector: str, params: Mapping[str, Any]) -> int:
    """Earliest layer a selector may cut at: where it was probed, or what it needs to work."""
    s = predictor.index(selector, params)
    if s < len(predictor.options):
        return predictor.options[s].first_layer
    from tpcal.plans.selectors import min_layer  # loads torch, which prediction alone never needs

    return max(predictor.limits.first_layer, min_layer(selector, params))


def neighbours(
    predictor: Predictor, cuts: Sequence[Cut], budget: Budget, max_cuts: int
) -> list[tuple[Cut, ...]]:
    """Plans one step away, on the same budget: a layer, a keep, a selector or a cut changes."""
    limits, options = predictor.limits, predictor.options
    steps: list[list[Cut]] = []
    for i, cut in enumerate(cuts):
        rest = [*cuts[:i], *cuts[i + 1 :]]
        for layer in (cut.layer - 2, cut.layer - 1, cut.layer + 1, cut.layer + 2):
            if 0 <= layer <= limits.last_layer and all(layer != c.layer for c in rest):
                steps.append([*rest, replace(cut, layer=layer)])
        steps.append(rest)
        if cut.selector is None:
            continue
        for factor in (0.5, 0.8, 0.93, 1.07, 1.25, 2.0):
            keep = min(1.0, cut.keep * factor)
            steps.append([*rest, replace(cut, keep=keep)])
        for option in options:
            other = replace(cut, selector=option.selector, params=option.params)
            if other != cut and cut.layer >= option.first_layer:
                steps.append([*rest, other])
    kept = [cut for cut in cuts if cut.selector is not None]
    if len(cuts) < max_cuts:
        for a, b in itertools.pairwise([*cuts, Cut(limits.n_layers, 0.0)]):
            if a.selector is not None and b.layer - a.layer > 1:
                middle = (a.layer + b.layer) // 2
                steps.append([*cuts, replace(a, layer=middle, keep=a.keep * 0.7)])
        if len(kept) == len(cuts) and limits.first_drop is not None:
            steps.append([*cuts, Cut(limits.last_layer, 0.0)])
    found = dict.fromkeys(fill(predictor, step, budget) for step in steps)
    found.pop(tuple(cuts), None)
    return [plan for plan in found if len(plan) <= max_cuts]
