"""Fitting of a plan to the budget and to the probed cuts, and its neighbouring plans."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.conditions import share
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.budget_projection import project
from tpcal.plans.errors import BudgetError
from tpcal.plans.plan_records import Cut


def fill(predictor: Predictor, cuts: Sequence[Cut], budget: Budget) -> tuple[Cut, ...]:
    """The cuts fitted to the budget, each at a layer where its selector was probed.

    Cuts that do not run in the predictor's engine are replaced, and conditional ones left out.

    Raises:
        BudgetError: If every plan costs more than the budget.
    """
    limits = predictor.limits
    last = _conditional(predictor, cuts)

    # Project the cuts on a layer average, replace selectors that were not probed so early, and
    # append the conditional drop if it still follows every other cut.
    def at(average: float, cuts: Sequence[Cut] = cuts) -> tuple[Cut, ...]:
        met = project(cuts, average, limits.n_tokens, limits.n_layers, limits=limits)
        plan = tuple(_placed(predictor, cut) for cut in met)
        if last and all(cut.layer < last.layer and cut.keep > 0 for cut in plan):
            return (*plan, last)
        return plan

    try:
        return predictor.prices.met(budget, at, limits.least)
    except BudgetError:
        # The selectors of the plan may start too late to be this cheap. The default selector
        # starts earliest, so its plans are the cheapest ones.
        return predictor.prices.met(budget, lambda average: at(average, ()), limits.least)


def _conditional(predictor: Predictor, cuts: Sequence[Cut]) -> Cut | None:
    """The last conditional drop within the layer limits; None if it fires never or always."""
    limits = predictor.limits
    for cut in reversed([c for c in cuts if c.condition is not None]):
        if limits.first_drop is not None and limits.first_drop <= cut.layer <= limits.last_layer:
            part = share(predictor.profile, cut)
            return cut if cut.keep == 0 and 0 < part < 1 and predictor.runs(cut) else None
    return None


def _placed(predictor: Predictor, cut: Cut) -> Cut:
    if cut.selector is None or (
        predictor.runs(cut) and cut.layer >= first_layer(predictor, cut.selector, cut.params)
    ):
        return cut
    # The same selector may have been probed there with other parameters, which need no attention.
    s = predictor.index(cut.selector, cut.params)
    if s < len(predictor.options) and cut.layer >= predictor.options[s].first_layer:
        alike = replace(cut, params=predictor.options[s].params)
        if predictor.runs(alike):
            return alike
    default = predictor.limits.default
    return replace(cut, selector=default.selector, params=default.params)


def first_layer(predictor: Predictor, selector: str, params: Mapping[str, Any]) -> int:
    """The earliest layer at which a selector may cut.

    It is the first layer where the selector was probed, or for a selector that was not probed the
    first layer at which it works. A selector that was probed with other parameters may need
    attention with these, which layer 0 does not have.
    """
    s = predictor.index(selector, params)
    if s < len(predictor.options):
        probed = predictor.options[s]
        if probed.first_layer > 0 or probed.params == params:
            return probed.first_layer
    from tpcal.plans.selectors import min_layer  # loads torch, which prediction alone never needs

    return max(predictor.limits.first_layer, min_layer(selector, params))


def neighbours(predictor: Predictor, cuts: Sequence[Cut], budget: Budget) -> list[tuple[Cut, ...]]:
    """Plans one step away that meet the same budget.

    A step changes the layer, keep or selector of one cut, or removes or adds a cut.
    """
    limits, options = predictor.limits, [predictor.options[s] for s in predictor.allowed]
    steps: list[list[Cut]] = []
    one = limits.layer_step
    for i, cut in enumerate(cuts):
        # Move the cut by one or two possible layers, or remove it.
        rest = [*cuts[:i], *cuts[i + 1 :]]
        for layer in (cut.layer + by * one for by in (-2, -1, 1, 2)):
            if 0 <= layer <= limits.last_layer and all(layer != c.layer for c in rest):
                steps.append([*rest, replace(cut, layer=layer)])
        steps.append(rest)
        if cut.selector is None:
            continue
        # Scale the number of tokens that it keeps.
        for factor in (0.5, 0.8, 0.93, 1.07, 1.25, 2.0):
            keep = min(1.0, cut.keep * factor)
            steps.append([*rest, replace(cut, keep=keep)])
        # Choose the tokens by another selector that was probed at this layer.
        for option in options:
            other = replace(cut, selector=option.selector, params=option.params)
            if other != cut and cut.layer >= option.first_layer:
                steps.append([*rest, other])
    # Add a cut halfway to the next cut or to the end of the decoder, or a drop-all at the last
    # layer if the plan has none.
    kept = [cut for cut in cuts if cut.selector is not None]
    if len(cuts) < limits.max_cuts:
        for a, b in itertools.pairwise([*cuts, Cut(limits.n_layers, 0.0)]):
            if a.selector is not None and b.layer - a.layer > one:
                middle = (a.layer + b.layer) // 2
                steps.append([*cuts, replace(a, layer=middle, keep=a.keep * 0.7)])
        if len(kept) == len(cuts) and limits.first_drop is not None:
            steps.append([*cuts, Cut(limits.last_layer, 0.0)])
    # Every step changes the cost, so each plan is fitted to the budget again.
    found = dict.fromkeys(fill(predictor, step, budget) for step in steps)
    found.pop(tuple(cuts), None)
    return [plan for plan in found if len(plan) <= limits.max_cuts]
