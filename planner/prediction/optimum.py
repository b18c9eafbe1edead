"""The plan with the smallest predicted loss: exact dynamic programming, groups reweighted.

The predicted loss adds up along the cuts, so the best rest of a plan depends only on the layer,
the tokens alive, the token-layers left to spend and the cuts left to make.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.prediction.space import exact_keep
from tpcal.plans.schema import Cut

Floats = NDArray[np.float64]

MAX_LEVELS = 24
MAX_UNITS = 800


@dataclass(frozen=True)
class Solver:
    """Finds optima for one budget; build it once, solve for many group weights.

    Counts are taken from ``levels`` and token-layers are counted in ``unit``: exact over those
    levels, and over all counts where N <= 24. Costs O(S C L J R) numpy operations for S selectors,
    C cuts, J levels and R <= 800 units: 0.1 s at L = 32.

    Attributes:
        budget: One in another kind than the layer average is met nearly; `fill` meets it.
        max_cuts: Most cuts of a plan, drop-all among them.
        only: Selectors (places in ``predictor.options``) to choose from; empty: all.
    """

    predictor: Predictor
    budget: Budget
    max_cuts: int = 4
    only: tuple[int, ...] = ()

    def optimum(self, weights: Sequence[float] | Floats | None = None) -> tuple[Cut, ...]:
        """Cuts with the smallest weighted predicted loss within the budget.

        Args:
            weights: [G] of the groups; None: all alike.

        Raises:
            BudgetError: No plan is that cheap.
        """
        limits = self.predictor.limits
        average = self.predictor.prices.average(self.budget)
        budget = limits.budget(max(average, limits.least))
        if budget >= limits.n_tokens * limits.n_layers:
            return ()
        n_groups = len(self.predictor.groups)
        w = np.full(n_groups, 1 / n_groups) if weights is None else np.asarray(weights, float)
        unit = max(1, math.ceil(budget / MAX_UNITS))
        levels = _levels(limits.min_count, limits.n_tokens, unit)
        alive = [0, *levels]
        losses = self.predictor.tables("kl").at(alive)
        first = np.tensordot(losses.first, w, axes=(1, 0))  # [S + 1, L, J]
        later = np.tensordot(losses.later, w, axes=(1, 0))
        moves = [self._moves(layer) for layer in range(limits.n_layers)]
        units = np.array(alive) // unit
        rest = _rest(later, units, budget // unit, moves, self.max_cuts - 1)
        found = _first_cut(first, units, rest, moves, budget, limits.n_tokens, unit)
        if found is None:  # the budget is within one unit of the cheapest plan
            cheapest = self._cut(limits.first_layer, self._default, limits.min_count)
            drop = limits.cheapest_drop
            return (cheapest,) if drop is None else (cheapest, Cut(drop, 0.0))
        steps = _trace(found, later, units, rest, moves)
        return tuple(self._cut(layer, s, alive[j]) for layer, s, j in steps)

    @property
    def _default(self) -> int:
        return self.predictor.options.index(self.predictor.limits.default)

    def _moves(self, layer: int) -> list[int]:
        """Selectors that may cut before ``layer``; the last one is drop-all."""
        options, limits = self.predictor.options, self.predictor.limits
        if layer > limits.last_layer:
            return []
        allowed = self.only or range(len(options))
        moves = [s for s in allowed if options[s].first_layer <= layer]
        drop = limits.first_drop is not None and layer >= limits.first_drop
        return [*moves, len(options)] if drop else moves

    def _cut(self, layer: int, s: int, count: int) -> Cut:
        if count == 0:
            return Cut(layer, 0.0)
        option = self.predictor.options[s]
        keep = exact_keep(count, self.predictor.limits.n_tokens)
        return Cut(layer, keep, option.selector, option.params)


def worst_group_optimum(
    predictor: Predictor, budget: Budget, max_cuts: int = 4, *, rounds: int = 12
) -> tuple[Cut, ...]:
    """Cuts with a small predicted objective, within one token of the budget.

    The weights of the groups move towards the groups that lose most (multiplicative weights, the
    dual of min max), beside the even weights of the mean; each move is one exact optimum. Plans
    are discrete, so a gap to the best plan can remain; steps to neighbouring plans narrow it.
    Never worse than the optimum of the mean. Not proven optimal.

    Source:
        Freund and Schapire 1999, "Adaptive game playing using multiplicative weights".
    """
    best = sorted(weighed_optima(predictor, budget, max_cuts, rounds), key=predictor.score)[:2]
    near = [_descend(predictor, cuts, budget, max_cuts) for cuts in best]
    return min(near, key=predictor.score)


def weighed_optima(
    predictor: Predictor, budget: Budget, max_cuts: int = 4, rounds: int = 12
) -> list[tuple[Cut, ...]]:
    """The plans on the way of `worst_group_optimum`, on the budget, the mean's optimum first."""
    solver = Solver(predictor, budget, max_cuts)
    even = predictor.objective.shares(predictor.groups)
    weights, found = even, dict[tuple[Cut, ...], None]()
    for turn in range(rounds):
        cuts = solver.optimum(weights if turn == 0 else (weights + even) / 2)
        found[fill(predictor, cuts, budget)] = None
        losses = predictor.losses(cuts) * even
        if len(predictor.groups) == 1 or losses.max() <= 0:
            break
        weights = weights * np.exp(2.0 / math.sqrt(turn + 1) * losses / losses.max())
        weights /= weights.sum()
    return list(found)


def _descend(
    predictor: Predictor, cuts: tuple[Cut, ...], budget: Budget, max_cuts: int
) -> tuple[Cut, ...]:
    for _ in range(30):
        near = neighbours(predictor, cuts, budget, max_cuts)
        better = min(near, key=predictor.score, default=cuts)
        if predictor.score(better) >= predictor.score(cuts):
            break
        cuts = better
    return cuts


def _levels(least: int, n_tokens: int, unit: int) -> list[int]:
    """Counts a cut may leave: all of them, or about 24, dense where few tokens stay."""
    lowest = math.ceil(least / unit)
    highest = (n_tokens - 1) // unit
    if highest - lowest < MAX_LEVELS:
        return [unit * j for j in range(lowest, highest + 1)]
    curve = np.geomspace(lowest, highest, MAX_LEVELS * 2 // 3)
    even = np.linspace(lowest, highest, MAX_LEVELS // 3)
    return [unit * int(j) for j in np.unique(np.round([*curve, *even]))]


def _rest(
    later: Floats, units: NDArray[np.int64], n_units: int, moves: list[list[int]], n_cuts: int
) -> Floats:
    """[L + 1, C + 1, J, R + 1] smallest loss from a layer on, by cuts left, level, units left."""
    n_layers, n_levels = later.shape[1:]
    rest = np.full((n_layers + 1, n_cuts + 1, n_levels, n_units + 1), np.inf)
    rest[n_layers] = 0.0
    for layer in range(n_layers - 1, 0, -1):
        stay = rest[layer]  # [C + 1, J, R + 1], filled in place
        for j, used in enumerate(units):
            if used <= n_units:
                stay[:, j, used:] = rest[layer + 1][:, j, : n_units + 1 - used]
        after = stay[:-1].copy()  # the layer's tokens are paid for at the level after the cut
        for s in moves[layer]:
            cost = later[s, layer]
            lower = _cut_losses(after, cost, s == len(later) - 1)
            stay[1:, 1:] = np.minimum(stay[1:, 1:], lower)
    return rest


def _cut_losses(after: Floats, cost: Floats, drop: bool) -> Floats:
    """[C, J - 1, R + 1] smallest loss when level j is cut to a lower one."""
    if drop:
        return np.maximum(cost[0] - cost[1:, None], 0.0) + after[:, :1]
    total = after[:, 1:] + cost[1:, None]
    best = np.minimum.accumulate(total, axis=1) - cost[1:, None]
    best[:, 1:] = best[:, :-1] + (cost[1:-1] - cost[2:])[:, None]  # strictly lower levels
    best[:, 0] = np.inf
    return best


def _first_cut(
    first: Floats,
    units: NDArray[np.int64],
    rest: Floats,
    moves: list[list[int]],
    budget: int,
    n_tokens: int,
    unit: int,
) -> tuple[int, int, int, int] | None:
    """Layer, selector, level and units left after it of the best first cut."""
    best, found = np.inf, None
    for layer, allowed in enumerate(moves):
        left = (budget - n_tokens * layer) // unit
        for s in allowed if left >= 0 else ():
            for j in (0,) if s == len(first) - 1 else range(1, len(units)):
                if units[j] > left:
                    break
                loss = first[s, layer, j] + rest[layer + 1, -1, j, left - units[j]]
                if loss < best:
                    best, found = loss, (layer, s, j, int(left - units[j]))
    return found


def _trace(
    found: tuple[int, int, int, int],
    later: Floats,
    units: NDArray[np.int64],
    rest: Floats,
    moves: list[list[int]],
) -> list[tuple[int, int, int]]:
    """The cuts of the optimum, (layer, selector, level), read back from the table."""
    layer, s, j, left = found
    steps, n_cuts = [(layer, s, j)], rest.shape[1] - 1
    for at in range(layer + 1, rest.shape[0] - 1):
        best, choice = np.inf, (s, j)
        if units[j] <= left:
            best = rest[at + 1, n_cuts, j, left - units[j]]
        for move in moves[at] if n_cuts and j else ():
            for low in (0,) if move == len(later) - 1 else range(1, j):
                if units[low] > left:
                    break
                loss = max(later[move, at, low] - later[move, at, j], 0.0)
                loss += rest[at + 1, n_cuts - 1, low, left - units[low]]
                if loss < best - 1e-12:
                    best, choice = loss, (move, low)
        if choice != (s, j) and choice[1] != j:
            s, j = choice
            n_cuts -= 1
            steps.append((at, s, j))
        left -= int(units[j])
    return steps


def seeds(
    predictor: Predictor, budget: Budget, max_cuts: int, presets: Collection[Sequence[Cut]] = ()
) -> list[tuple[Cut, ...]]:
    """Plans worth measuring first, best bets first, on the budget and without repeats."""
    best = worst_group_optimum(predictor, budget, max_cuts)
    near = neighbours(predictor, best, budget, max_cuts)
    near.sort(key=predictor.score)
    optima = sorted(weighed_optima(predictor, budget, max_cuts), key=predictor.score)
    plans = [best, *optima[:4], *presets]
    if len(predictor.options) > 1:
        for s in range(len(predictor.options)):
            plans.append(Solver(predictor, budget, max_cuts, (s,)).optimum())
    plans.extend(near[:6])
    return list(dict.fromkeys(fill(predictor, plan, budget) for plan in plans))
