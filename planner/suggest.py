"""Plans as parameters of an Optuna trial, and back."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tpcal.planner.space import Limits, exact_keep
from tpcal.plans.schema import Cut, n_keep

LOWEST_RATIO = 0.01
"""Smallest part of the living tokens that a suggested cut leaves; the budget rescales it."""


@dataclass(frozen=True)
class Choice:
    """A selector of the search space, with at most one parameter left open."""

    selector: str
    fixed: Mapping[str, Any]
    tuned: str | None = None
    low: float = 0.0
    high: float = 0.0

    @property
    def label(self) -> str:
        """Name in the study; equal choices have equal labels in every run."""
        fixed = json.dumps(dict(self.fixed), sort_keys=True) if self.fixed else ""
        tuned = f" {self.tuned}={self.low:g}..{self.high:g}" if self.tuned else ""
        return f"{self.selector}{fixed}{tuned}"


def choices(cuts: Iterable[Cut]) -> tuple[Choice, ...]:
    """Every selector with parameters that occurs in ``cuts``, in order of appearance.

    Where a selector occurs with several values of a fractional parameter, the one with most values
    becomes a range between them; other parameters stay as they occur.
    """
    occurring: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cut in cuts:
        if cut.selector is not None and dict(cut.params) not in occurring[cut.selector]:
            occurring[cut.selector].append(dict(cut.params))
    found: dict[str, Choice] = {}
    for selector, variants in occurring.items():
        name, values = _most_varied(variants)
        for params in variants:
            choice = Choice(selector, params)
            if name is not None and name in params:
                fixed = {k: v for k, v in params.items() if k != name}
                choice = Choice(selector, fixed, name, min(values), max(values))
            found.setdefault(choice.label, choice)
    return tuple(found.values())


def _most_varied(variants: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[float]]:
    values: dict[str, set[float]] = defaultdict(set)
    for params in variants:
        for name, value in params.items():
            if isinstance(value, float):
                values[name].add(value)
    varied = {name: sorted(seen) for name, seen in values.items() if len(seen) > 1}
    if not varied:
        return None, []
    name = max(sorted(varied), key=lambda n: len(varied[n]))
    return name, varied[name]


@dataclass(frozen=True)
class Encoding:
    """The search space of one study.

    Attributes:
        limits: Of every plan.
        choices: Selectors, as `choices` finds them.
        max_cuts: Most cuts of a plan, drop-all among them.
    """

    limits: Limits
    choices: tuple[Choice, ...]
    max_cuts: int

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """All parameters; every trial has all of them, so that they can be modelled jointly."""
        limits = self.limits
        space: dict[str, BaseDistribution] = {"n_cuts": IntDistribution(1, self.max_cuts)}
        if limits.first_drop is not None:
            space["drop_all"] = IntDistribution(limits.first_drop, limits.n_layers)  # L: never
        labels = [choice.label for choice in self.choices]
        for i in range(self.max_cuts):
            space[f"layer_{i}"] = IntDistribution(limits.first_layer, limits.n_layers - 1)
            space[f"ratio_{i}"] = FloatDistribution(LOWEST_RATIO, 1.0)
            space[f"selector_{i}"] = CategoricalDistribution(labels)
            if any(choice.tuned for choice in self.choices):
                space[f"tune_{i}"] = FloatDistribution(0.0, 1.0)
        return space

    def suggest(self, trial: optuna.Trial) -> tuple[Cut, ...]:
        """The cuts of a trial, before they are put on the budget."""
        for name, dist in self.distributions.items():
            if isinstance(dist, IntDistribution):
                trial.suggest_int(name, dist.low, dist.high)
            elif isinstance(dist, FloatDistribution):
                trial.suggest_float(name, dist.low, dist.high)
            elif isinstance(dist, CategoricalDistribution):
                trial.suggest_categorical(name, dist.choices)
        return self.decode(trial.params)

    def decode(self, params: Mapping[str, Any]) -> tuple[Cut, ...]:
        """Cuts of parameters: slots in order of layer, each keeping a part of what is alive."""
        n, n_layers = self.limits.n_tokens, self.limits.n_layers
        drop = params.get("drop_all", n_layers)
        n_cuts = params["n_cuts"] if drop == n_layers else min(params["n_cuts"], self.max_cuts - 1)
        by_label = {choice.label: choice for choice in self.choices}
        cuts: list[Cut] = []
        alive = float(n)
        for i in sorted(range(n_cuts), key=lambda i: params[f"layer_{i}"]):
            layer = params[f"layer_{i}"]
            if layer >= drop or (cuts and cuts[-1].layer == layer):
                continue
            alive *= params[f"ratio_{i}"]
            choice = by_label[params[f"selector_{i}"]]
            chosen = dict(choice.fixed)
            if choice.tuned:
                part = params[f"tune_{i}"]
                chosen[choice.tuned] = round(choice.low + part * (choice.high - choice.low), 3)
            cuts.append(Cut(layer, exact_keep(max(1, round(alive)), n), choice.selector, chosen))
        return (*cuts, Cut(drop, 0.0)) if drop < n_layers else tuple(cuts)

    def encode(self, cuts: Sequence[Cut]) -> dict[str, Any]:
        """Parameters that decode to ``cuts``; unused slots repeat the last cut."""
        n, n_layers = self.limits.n_tokens, self.limits.n_layers
        kept = [cut for cut in cuts if n_keep(cut.keep, n) > 0]
        drops = [cut.layer for cut in cuts if n_keep(cut.keep, n) == 0]
        params: dict[str, Any] = {"n_cuts": max(1, len(kept))}
        if self.limits.first_drop is not None:
            params["drop_all"] = min(drops, default=n_layers)
        before = n
        for i in range(self.max_cuts):
            cut = kept[min(i, len(kept) - 1)]
            count = n_keep(cut.keep, n)
            place, part = self._place(cut)
            params[f"layer_{i}"] = cut.layer
            params[f"ratio_{i}"] = max(LOWEST_RATIO, count / before)
            params[f"selector_{i}"] = self.choices[place].label
            if any(choice.tuned for choice in self.choices):
                params[f"tune_{i}"] = part
            before = count
        return params

    def _place(self, cut: Cut) -> tuple[int, float]:
        for i, choice in enumerate(self.choices):
            rest = {k: v for k, v in cut.params.items() if k != choice.tuned}
            if choice.selector != cut.selector or rest != dict(choice.fixed):
                continue
            if choice.tuned is None:
                return i, 0.5
            if choice.tuned in cut.params:
                value = float(cut.params[choice.tuned])
                return i, (value - choice.low) / (choice.high - choice.low)
        raise AssertionError(f"{cut} is not in the search space")
