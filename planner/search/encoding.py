"""Plans as parameters of an Optuna trial, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tpcal.planner.prediction.conditions import dropping, share, useful
from tpcal.plans.budget_projection import Limits, exact_keep
from tpcal.plans.plan_records import Cut, n_keep
from tpcal.plans.selectors import parameters, searched

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

LOWEST_RATIO = 0.01
"""Smallest part of the living tokens that a suggested cut leaves; the budget rescales it."""


@dataclass(frozen=True)
class Choice:
    """A selector of the search space; parameters that it names as worth searching are open."""

    selector: str
    fixed: Mapping[str, Any]
    """The other parameters that differ from their defaults."""

    @property
    def label(self) -> str:
        """Name in the study; equal choices have equal labels in every run."""
        fixed = json.dumps(dict(self.fixed), sort_keys=True) if self.fixed else ""
        return f"{self.selector}{fixed}"


def choice_of(cut: Cut) -> Choice:
    """The choice that a cut makes."""
    assert cut.selector is not None
    defaults, open_ones = parameters(cut.selector), searched(cut.selector)
    rest = {k: v for k, v in cut.params.items() if k not in open_ones and v != defaults[k]}
    return Choice(cut.selector, rest)


def choices(cuts: Iterable[Cut]) -> tuple[Choice, ...]:
    """Every choice that occurs in ``cuts``, in order of appearance."""
    found: dict[str, Choice] = {}
    for cut in cuts:
        if cut.selector is not None:
            choice = choice_of(cut)
            found.setdefault(choice.label, choice)
    return tuple(found.values())


@dataclass(frozen=True)
class Encoding:
    """The search space of one study.

    Attributes:
        limits: Of every plan.
        choices: Selectors, as `choices` finds them.
        profile: Tells for which samples a conditional drop fires; None: there are none.
    """

    limits: Limits
    choices: tuple[Choice, ...]
    profile: Profile | None = None

    # A plan becomes numbers as follows. Every trial has the same parameters: as many slots as cuts
    # are allowed, each with a layer, a ratio and a selector; the number of slots in use; and the
    # drop-all. Slot i keeps alive_i = ratio_i * alive_{i-1} tokens, so that any ratios in (0, 1]
    # make a plan whose cuts keep ever fewer tokens. The budget rescales the counts afterwards
    # (`fill`).

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """All parameters; every trial has all of them, so that they can be modelled jointly."""
        limits = self.limits
        space: dict[str, BaseDistribution] = {"n_cuts": IntDistribution(1, self.limits.max_cuts)}
        if limits.first_drop is not None:
            space["drop_all"] = IntDistribution(
                limits.first_drop, self._never, step=limits.layer_step
            )
            if self.profile is not None and useful(self.profile):
                space["drop_share"] = FloatDistribution(
                    0.1, 1.0
                )  # of the samples; 1: no condition
        labels = [choice.label for choice in self.choices]
        for i in range(self.limits.max_cuts):
            space[f"layer_{i}"] = IntDistribution(
                limits.first_layer, limits.last_layer, step=limits.layer_step
            )
            space[f"ratio_{i}"] = FloatDistribution(LOWEST_RATIO, 1.0)
            space[f"selector_{i}"] = CategoricalDistribution(labels)
            for selector, name, values in self._open:
                space[f"{selector}.{name}_{i}"] = _distribution(values)
        return space

    @property
    def _never(self) -> int:
        """The layer of a drop-all that a plan does not have."""
        return self.limits.last_layer + self.limits.layer_step

    @property
    def _open(self) -> list[tuple[str, str, tuple[Any, ...]]]:
        """Selector, parameter and values of all that is searched."""
        selectors = dict.fromkeys(choice.selector for choice in self.choices)
        return [(s, name, values) for s in selectors for name, values in searched(s).items()]

    def suggest(self, trial: optuna.Trial) -> tuple[Cut, ...]:
        """The cuts of a trial, before they are put on the budget."""
        for name, dist in self.distributions.items():
            if isinstance(dist, IntDistribution):
                trial.suggest_int(name, dist.low, dist.high, step=dist.step)
            elif isinstance(dist, FloatDistribution):
                trial.suggest_float(name, dist.low, dist.high)
            elif isinstance(dist, CategoricalDistribution):
                trial.suggest_categorical(name, dist.choices)
        return self.decode(trial.params)

    def decode(self, params: Mapping[str, Any]) -> tuple[Cut, ...]:
        """Cuts of parameters: slots in order of layer, each keeping a part of what is alive."""
        n, never = self.limits.n_tokens, self._never
        drop = params.get("drop_all", never)
        n_cuts, most = params["n_cuts"], self.limits.max_cuts
        n_cuts = n_cuts if drop == never else min(n_cuts, most - 1)
        by_label = {choice.label: choice for choice in self.choices}
        cuts: list[Cut] = []
        # The slots in order of layer; `alive` is the number of tokens after the cuts so far.
        alive = float(n)
        for i in sorted(range(n_cuts), key=lambda i: params[f"layer_{i}"]):
            layer = params[f"layer_{i}"]
            if layer >= drop or (cuts and cuts[-1].layer == layer):
                continue  # nothing is left to cut, or an earlier slot has cut at this layer
            alive *= params[f"ratio_{i}"]
            choice = by_label[params[f"selector_{i}"]]
            keep = exact_keep(max(1, round(alive)), n)
            cuts.append(Cut(layer, keep, choice.selector, self._params(choice, params, i)))
        if drop == never:
            return tuple(cuts)
        if self.profile is None or "drop_share" not in params:
            return (*cuts, Cut(drop, 0.0))
        return (*cuts, dropping(self.profile, drop, params["drop_share"]))

    def encode(self, cuts: Sequence[Cut]) -> dict[str, Any]:
        """Parameters that decode to ``cuts``; unused slots repeat the last cut."""
        n, never = self.limits.n_tokens, self._never
        kept = [cut for cut in cuts if n_keep(cut.keep, n) > 0]
        drops = [cut for cut in cuts if n_keep(cut.keep, n) == 0]
        params: dict[str, Any] = {"n_cuts": max(1, len(kept))}
        if self.limits.first_drop is not None:
            params["drop_all"] = min((cut.layer for cut in drops), default=never)
            if self.profile is not None and useful(self.profile):
                part = max(0.1, share(self.profile, drops[0])) if drops else 1.0
                params["drop_share"] = part
        # ratio_i = count_i / count_{i-1} inverts `decode`. Unused slots get values as well, since
        # samplers that model all parameters jointly need every one of them.
        before = n
        for i in range(self.limits.max_cuts):
            cut = kept[min(i, len(kept) - 1)]
            count = n_keep(cut.keep, n)
            params[f"layer_{i}"] = cut.layer
            params[f"ratio_{i}"] = max(LOWEST_RATIO, count / before)
            params[f"selector_{i}"] = choice_of(cut).label
            for selector, name, _ in self._open:
                given = cut.params if cut.selector == selector else {}
                params[f"{selector}.{name}_{i}"] = given.get(name, parameters(selector)[name])
            before = count
        return params

    def _params(self, choice: Choice, params: Mapping[str, Any], i: int) -> dict[str, Any]:
        found = dict(choice.fixed)
        for name in searched(choice.selector):
            value = params[f"{choice.selector}.{name}_{i}"]
            value = round(value, 3) if isinstance(value, float) else value
            if value != parameters(choice.selector)[name]:
                found[name] = value
        return found


def canonical(cut: Cut) -> Cut:
    """The cut as trials write it: without parameters that are the defaults."""
    if cut.selector is None:
        return cut
    defaults = parameters(cut.selector)
    params = {name: value for name, value in cut.params.items() if value != defaults[name]}
    return Cut(cut.layer, cut.keep, cut.selector, params, cut.condition)


def _distribution(values: tuple[Any, ...]) -> BaseDistribution:
    if isinstance(values[0], str):
        return CategoricalDistribution(values)
    if isinstance(values[0], int):
        return IntDistribution(*values)
    return FloatDistribution(*values)
