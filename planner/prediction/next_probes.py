"""Which cuts to probe next: those that good plans make where the profile only guesses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tpcal.calibrate.profile import Probe, Profile
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.curves import key
from tpcal.planner.prediction.neighbours import neighbours
from tpcal.planner.prediction.optimum import weighed_optima
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.schema import Cut, n_keep

LADDER = (0.06, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5, 0.65)
"""Layer averages whose plans have to be known well."""
ROUND_SHARE = 0.1
"""Work of a round, as a share of the whole grid's."""
MOST_SHARE = 0.5
"""Work of all probes, likewise."""
SETTLED = 0.05
"""Share of a good plan's predicted loss that may be guessed."""
WORTH = 0.005
"""Votes that a probe must have: that share of a good plan's loss, over all budgets."""
_CLOSE = 0.3
"""A plan that is predicted to lose this much more than the best counts 1/e of it."""
_ROUNDS = 6
_LEAST = 1e-4
"""Nats; where plans lose less, none is worth a closer look."""
Floats = NDArray[np.float64]
Counts = Mapping[tuple[int, str], Mapping[int, Probe]]
"""Of a layer and a selector: count -> probe."""


def next_probes(profile: Profile, untried: Sequence[Probe]) -> tuple[Probe, ...]:
    """Probes that would tell most about where to cut, in the order of ``untried``; maybe none.

    For each budget of `LADDER` the plans that are predicted best, and those one step away from
    them, vote for the untried probes that their loss is read off: each with the share of it that
    is guessed there, weighed by how close the plan comes to the best. So what no good plan uses
    stays coarse. The votes of probes above `WORTH` are set against the root of their work. A round
    ends at `ROUND_SHARE` of the grid's work; refinement ends where not half a round is left of
    `MOST_SHARE`, or where good plans are known but for `SETTLED` of their loss. Deterministic.

    Args:
        profile: What was found so far.
        untried: The probes of the grid that the profile lacks.
    """
    predictor = Predictor(profile)
    votes = _votes(predictor, untried)
    if sum(votes.values()) < SETTLED:
        return ()
    whole = sum(work(profile, [*profile.probes, *untried]))
    left = MOST_SHARE * whole - sum(work(profile, profile.probes))
    if left < ROUND_SHARE * whole / 2:
        return ()
    left = min(left, ROUND_SHARE * whole)
    price = dict(zip(untried, work(profile, untried), strict=True))
    chosen = set()
    worthy = [probe for probe in votes if votes[probe] >= WORTH]
    for probe in sorted(worthy, key=lambda p: -votes[p] / math.sqrt(price[p])):
        if price[probe] <= left:
            chosen.add(probe)
            left -= price[probe]
    return tuple(probe for probe in untried if probe in chosen)


def work(profile: Profile, probes: Sequence[Probe]) -> list[float]:
    """Decoder layers that each probe replays, times the share of the prompt's tokens in them."""
    n, text, n_layers = profile.n_tokens, profile.n_text, profile.shape.n_layers
    return [(n_layers - p.layer) * (n_keep(p.keep, n) + text) / (n + text) for p in probes]


def _votes(predictor: Predictor, untried: Sequence[Probe]) -> dict[Probe, float]:
    counts = _by_place(predictor, [*predictor.profile.probes, *untried])
    votes: dict[Probe, float] = defaultdict(float)
    budgets = [b for b in LADDER if b >= predictor.limits.least]
    for target in budgets:
        for plan, weight, loss in _good_plans(predictor, Budget(target)):
            for probe, guessed in _guesses(predictor, plan, counts):
                votes[probe] += weight * guessed / loss / len(budgets)
    open_to_try = set(untried)
    return {probe: vote for probe, vote in votes.items() if probe in open_to_try}


def _by_place(predictor: Predictor, probes: Sequence[Probe]) -> Counts:
    found: dict[tuple[int, str], dict[int, Probe]] = defaultdict(dict)
    for probe in probes:
        count = n_keep(probe.keep, predictor.limits.n_tokens)
        if count and probe.selector:
            found[probe.layer, key(probe.selector, probe.params)][count] = probe
    return found


def _good_plans(
    predictor: Predictor, budget: Budget
) -> list[tuple[tuple[Cut, ...], float, float]]:
    """Plans, their weights, which sum to 1, and the loss of the best one."""
    optima = weighed_optima(predictor, budget, rounds=_ROUNDS)
    best = min(optima, key=predictor.score)
    plans = list(dict.fromkeys([*optima, *neighbours(predictor, best, budget, max_cuts=4)]))
    scores = [predictor.score(plan) for plan in plans]
    least = max(min(scores), _LEAST)
    weights = [math.exp((least - score) / (_CLOSE * least)) for score in scores]
    total = sum(weights)
    return [(plan, w / total, least) for plan, w in zip(plans, weights, strict=True)]


def _guesses(
    predictor: Predictor, plan: Sequence[Cut], counts: Counts
) -> Iterator[tuple[Probe, float]]:
    """Probes next to the cuts of a plan, and the part of its loss that rests on each.

    A cut's loss is read at its count and at the count before it.
    """
    before = n = predictor.limits.n_tokens
    for cut in plan:
        count = n_keep(cut.keep, n)
        probes = counts.get((cut.layer, key(cut.selector, cut.params)), {}) if cut.selector else {}
        for at in {count, before} - {n} if probes else ():
            loss = predictor.objective.values(_single(predictor, cut, at), predictor.groups)
            for probe, share in _around(probes, at):
                yield probe, share * float(loss)
        before = count


def _single(predictor: Predictor, cut: Cut, count: int) -> Floats:
    """[G] predicted loss of this cut alone, to ``count``."""
    s = predictor.index(cut.selector, cut.params)
    return predictor.tables("kl").single(s, cut.layer, count)


def _around(probes: Mapping[int, Probe], count: int) -> list[tuple[Probe, float]]:
    """The probes of the next smaller and the next larger count, and how near each is; sum 1."""
    below = max((c for c in probes if c <= count), default=None)
    above = min((c for c in probes if c >= count), default=None)
    if below is None or above is None or below == above:
        only = above if below is None else below
        return [] if only is None else [(probes[only], 1.0)]
    near = (above - count) / (above - below)
    return [(probes[below], near), (probes[above], 1 - near)]
