"""Choice of the next probes: the cuts of good plans whose loss is only interpolated so far."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tpcal.calibrate import probe_grid
from tpcal.calibrate.profile import Probe, Profile
from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.curves import key
from tpcal.planner.prediction.neighbours import neighbours
from tpcal.planner.prediction.optimum import weighed_optima
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.plan_records import Cut, n_keep

VOTING_BUDGETS = (0.06, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5, 0.65)
"""Layer averages of keep for which good plans are refined."""
ROUND_SHARE = 0.1
"""Work of one round, as a share of the work of the whole grid."""
MOST_SHARE = 0.5
"""Work of all probes together, as a share of the work of the whole grid."""
MOST_PASSES = 20
"""Work of all probes of a sample together, in unpruned passes of the decoder. Deep decoders have
so many probes that this is less than `MOST_SHARE`."""
MOST_INTERPOLATED = 0.05
"""Share of a good plan's predicted loss that may remain interpolated."""
FEWEST_VOTES = 0.005
"""Fewest votes of a chosen probe, as a share of a good plan's loss averaged over the budgets."""
_CLOSE = 0.3
"""A plan whose predicted loss is larger than the best one by this share has 1/e of its weight."""
_ROUNDS = 6
_LEAST = 1e-4
"""Smallest loss in nats that votes are relative to; smaller losses need no closer look."""
Floats = NDArray[np.float64]
Counts = Mapping[tuple[int, str], Mapping[int, Probe]]
"""(layer, selector) -> count -> probe."""


def next_probes(profile: Profile, untried: Sequence[Probe]) -> tuple[Probe, ...]:
    """The probes of the next round, in the order of ``untried``; empty when refinement is done.

    For each budget of `VOTING_BUDGETS`, the plans with the best predictions and their neighbours
    vote for the untried probes that their predicted loss depends on:

        votes(p) = mean over budgets of sum over plans of weight(plan) * loss at p / best loss

    Cuts that no good plan makes therefore stay coarse. Probes with fewer votes than `FEWEST_VOTES`
    are left out. A round takes probes up to `ROUND_SHARE` of the work of the grid. Refinement ends
    when less than half a round is left of `MOST_SHARE` and `MOST_PASSES`, or when less than
    `MOST_INTERPOLATED` of the loss of good plans is interpolated. The result is deterministic.

    Args:
        profile: Profile with the probes measured so far.
        untried: Probes of the grid that the profile lacks.
    """
    # Stop if the interpolated part of the loss is small enough already.
    predictor = Predictor(profile)
    votes = _votes(predictor, untried)
    if sum(votes.values()) < MOST_INTERPOLATED:
        return ()
    # Stop if the work allowed for all rounds is nearly used up.
    whole = sum(work(profile, [*profile.probes, *untried]))
    allowed = min(MOST_SHARE * whole, MOST_PASSES * profile.shape.n_layers)
    left = allowed - sum(work(profile, profile.probes))
    if left < ROUND_SHARE * whole / 2:
        return ()
    left = min(left, ROUND_SHARE * whole)
    # Take the probes greedily by votes / sqrt(work), as long as the work of the round allows. The
    # root prefers informative probes to cheap ones.
    price = dict(zip(untried, work(profile, untried), strict=True))
    chosen = set()
    worthy = [probe for probe in votes if votes[probe] >= FEWEST_VOTES]
    for probe in sorted(worthy, key=lambda p: -votes[p] / math.sqrt(price[p])):
        if price[probe] <= left:
            chosen.add(probe)
            left -= price[probe]
    return tuple(probe for probe in untried if probe in chosen)


def work(profile: Profile, probes: Sequence[Probe]) -> list[float]:
    """Work of each probe on the profile's prompt, as `probe_grid.work` counts it."""
    n, text, n_layers = profile.n_tokens, profile.n_text, profile.shape.n_layers
    return [probe_grid.work(p, n_layers, n_keep(p.keep, n), n, text) for p in probes]


def _votes(predictor: Predictor, untried: Sequence[Probe]) -> dict[Probe, float]:
    # A plan with weight w and `guessed` nats at a probe adds w * guessed / (best loss) to the
    # votes of this probe; the budgets are averaged. Probes measured already are left out.
    counts = _by_place(predictor, [*predictor.profile.probes, *untried])
    votes: dict[Probe, float] = defaultdict(float)
    budgets = [b for b in VOTING_BUDGETS if b >= predictor.limits.least]
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
    """Good plans of a budget, their weights with sum 1, and the loss of the best one.

    The weight of a plan with the predicted loss D is proportional to
    exp(-(D - D_best) / (0.3 * D_best)), with 0.3 = `_CLOSE`.
    """
    optima = weighed_optima(predictor, budget, rounds=_ROUNDS)
    best = min(optima, key=predictor.score)
    plans = list(dict.fromkeys([*optima, *neighbours(predictor, best, budget)]))
    scores = [predictor.score(plan) for plan in plans]
    least = max(min(scores), _LEAST)
    weights = [math.exp((least - score) / (_CLOSE * least)) for score in scores]
    total = sum(weights)
    return [(plan, w / total, least) for plan, w in zip(plans, weights, strict=True)]


def _guesses(
    predictor: Predictor, plan: Sequence[Cut], counts: Counts
) -> Iterator[tuple[Probe, float]]:
    """Probes next to the cuts of a plan, and the nats of its loss that depend on each of them.

    The prediction of most cuts is d(l, k_i) - d(l, k_(i-1)), so it depends on the probes around
    the count after the cut and on those around the count before it. The whole image needs no
    probe. The probes around the share that leaves decide for poor selectors alone, and are not
    refined.
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
    """[G] the predicted loss of this cut alone, if it leaves ``count`` tokens."""
    s = predictor.index(cut.selector, cut.params)
    return predictor.tables("kl").single(s, cut.layer, count)


def _around(probes: Mapping[int, Probe], count: int) -> list[tuple[Probe, float]]:
    """The probes of the next smaller and next larger count, with linear weights of sum 1."""
    below = max((c for c in probes if c <= count), default=None)
    above = min((c for c in probes if c >= count), default=None)
    if below is None or above is None or below == above:
        only = above if below is None else below
        return [] if only is None else [(probes[only], 1.0)]
    near = (above - count) / (above - below)
    return [(probes[below], near), (probes[above], 1 - near)]
