"""The plan with the smallest predicted loss: exact dynamic programming with group weights.

The predicted loss is a sum over the cuts. The best continuation of a plan therefore depends only
on four numbers: the layer l, the level j of tokens that are still there, the token-layers r left
to spend, and the number c of cuts left. Let V(l, c, j, r) be the smallest loss of a continuation,
n_j the tokens of level j and e_s(l, j, i) the weighted loss that a cut before layer l by selector
s adds, from level j to level i < j. Level 0 drops all tokens. Then

    V(L, c, j, r) = 0
    V(l, c, j, r) = min of  V(l + 1, c, j, r - n_j)                                         no cut
                            min_s e_s(l, j, i) + V(l + 1, c - 1, i, r - n_i)      cut, i < j

and V is infinite for r < 0. `tpcal.planner.prediction.predict` says what a cut adds. The first cut
is searched separately, because its loss is read from other curves (``Levels`` there).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill, neighbours
from tpcal.planner.prediction.predict import Predictor, added, same_share
from tpcal.plans.budget_projection import exact_keep
from tpcal.plans.plan_records import Cut

Floats = NDArray[np.float64]

MAX_LEVELS = 24
MAX_UNITS = 800


@dataclass(frozen=True)
class Solver:
    """Optimal plans of one budget, for any weights of the groups.

    Token counts are restricted to J levels, and token-layers are counted in units. The result is
    exact for these levels, which are all counts if N <= 24. The cost is O(L J^2 (S + C R)) numpy
    operations for S selectors, C cuts, J levels and R <= 800 units: 0.1 s at L = 32.

    Attributes:
        predictor: Predicts the losses.
        budget: Budget of the plans. A budget of another kind than the layer average is met only
            approximately; `fill` meets it.
        only: Allowed selectors as indices into ``predictor.options``; empty allows all that
            ``predictor.allowed`` has.
    """

    predictor: Predictor
    budget: Budget
    only: tuple[int, ...] = ()

    def optimum(self, weights: Sequence[float] | Floats | None = None) -> tuple[Cut, ...]:
        """The cuts with the smallest weighted predicted loss within the budget.

        Args:
            weights: [G] weights of the groups; None weighs all groups equally.

        Raises:
            BudgetError: If every plan costs more than the budget.
        """
        # Turn the budget into token-layers. A budget that the unpruned model meets needs no cut.
        limits = self.predictor.limits
        average = self.predictor.prices.average(self.budget)
        budget = limits.budget(max(average, limits.least))
        if budget >= limits.n_tokens * limits.n_layers:
            return ()
        # Choose the unit so that the budget has at most `MAX_UNITS` of them, and the levels as
        # multiples of the unit, so that the arithmetic in units is exact.
        n_groups = len(self.predictor.groups)
        w = np.full(n_groups, 1 / n_groups) if weights is None else np.asarray(weights, float)
        unit = max(1, math.ceil(budget / MAX_UNITS))
        levels = _levels(limits.min_count, limits.n_tokens, unit)
        alive = [0, *levels]
        # Weigh the losses of the groups: d_s(l, j) = sum_g w_g * d_(s, g)(l, j).
        first = np.tensordot(self.predictor.tables("kl").at(alive).first, w, axes=(1, 0))
        more = self._added(alive, w)
        # Solve the recurrence for all cuts but the first, choose the first cut, and read the rest
        # of the plan back from the table.
        moves = [self._moves(layer) for layer in range(limits.n_layers)]
        units = np.array(alive) // unit
        rest = _rest(more, units, budget // unit, moves, limits.max_cuts - 1)
        # Before the first cut, all N tokens pass l layers, which costs N * l token-layers.
        left = [(budget - limits.n_tokens * layer) // unit for layer in range(limits.n_layers)]
        found = _first_cut(first, units, rest, moves, left)
        if found is None:
            # The budget is less than one unit above the cheapest plan, which is then the answer.
            cheapest = self._cut(limits.first_layer, self._default, limits.min_count)
            drop = limits.cheapest_drop
            return (cheapest,) if drop is None else (cheapest, Cut(drop, 0.0))
        steps = _trace(found, more, units, rest, moves)
        return tuple(self._cut(layer, s, alive[j]) for layer, s, j in steps)

    def _added(self, alive: Sequence[int], weights: Floats) -> Floats:
        """[S + 1, L, J, J] the weighted loss e_s(l, j, i) of a cut from ``alive[j]`` to fewer
        tokens ``alive[i]``; infinite for i >= j."""
        # Read the curves at the counts themselves and at those of the same shares.
        n, tables = self.predictor.limits.n_tokens, self.predictor.tables("kl")
        pairs = [(j, i) for j in range(1, len(alive)) for i in range(j)]
        counts = sorted({*alive, *(same_share(alive[i], alive[j], n) for j, i in pairs)})
        later = np.tensordot(tables.at(counts).later, weights, axes=(1, 0))  # [S + 1, L, counts]
        curve = dict(zip(counts, np.moveaxis(later, -1, 0), strict=True)).__getitem__
        found = np.full((*later.shape[:2], len(alive), len(alive)), np.inf)
        for j, i in pairs:
            found[..., j, i] = added(curve, alive[j], alive[i], n)
        return found

    @property
    def _default(self) -> int:
        return self.predictor.options.index(self.predictor.limits.default)

    def _moves(self, layer: int) -> list[int]:
        """Selectors that may cut before ``layer``; index ``len(options)`` stands for drop-all."""
        options, limits = self.predictor.options, self.predictor.limits
        if layer > limits.last_layer or layer != limits.nearest(layer):
            return []
        allowed = self.only or self.predictor.allowed
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
    predictor: Predictor, budget: Budget, *, rounds: int = 12
) -> tuple[Cut, ...]:
    """Cuts with a small predicted objective, within one token of the budget.

    `weighed_optima` moves the group weights towards the groups that lose most. Plans are discrete,
    so a gap to the best plan can remain; a descent over neighbouring plans reduces it. The result
    is never worse than the optimum of the mean, but it is not proven to be optimal.

    Source:
        Freund and Schapire 1999, "Adaptive game playing using multiplicative weights".
    """
    optima = weighed_optima(predictor, budget, rounds)
    return _descended(predictor, optima, budget)


def weighed_optima(
    predictor: Predictor, budget: Budget, rounds: int = 12
) -> list[tuple[Cut, ...]]:
    """Optima of several group weights, fitted to the budget; the optimum of the mean is first.

    The worst-group part of the objective is min over plans of max over groups. Multiplicative
    weights approach its dual: groups that lose more gain weight, and every weighting is solved
    exactly.
    """
    solver = Solver(predictor, budget)
    objective = predictor.objective
    even, share = objective.shares(predictor.groups), objective.worst_share
    weights, found = even, dict[tuple[Cut, ...], None]()
    for turn in range(rounds):
        # The objective is a share of the worst group and the rest the mean, so the plan is optimal
        # for as large parts of the moved weights and the even weights of the mean.
        mixed = share * weights + (1 - share) * even
        cuts = solver.optimum(mixed)
        found[fill(predictor, cuts, budget)] = None
        losses = predictor.losses(cuts) * even
        if len(predictor.groups) == 1 or losses.max() <= 0:
            break
        # w_g <- w_g * exp(eta_t * D_g / max D), scaled to sum 1, with eta_t = 2 / sqrt(t + 1).
        # The step falls, so that the weights settle.
        weights = weights * np.exp(2.0 / math.sqrt(turn + 1) * losses / losses.max())
        weights /= weights.sum()
    return list(found)


def _descended(
    predictor: Predictor, optima: list[tuple[Cut, ...]], budget: Budget
) -> tuple[Cut, ...]:
    """The best plan that the descents from the two best optima reach."""
    best = sorted(optima, key=predictor.score)[:2]
    near = [_descend(predictor, cuts, budget) for cuts in best]
    return min(near, key=predictor.score)


def _descend(predictor: Predictor, cuts: tuple[Cut, ...], budget: Budget) -> tuple[Cut, ...]:
    # Steepest descent: go to the best neighbour as long as its predicted objective is smaller.
    for _ in range(30):
        near = neighbours(predictor, cuts, budget)
        better = min(near, key=predictor.score, default=cuts)
        if predictor.score(better) >= predictor.score(cuts):
            break
        cuts = better
    return cuts


def _levels(least: int, n_tokens: int, unit: int) -> list[int]:
    """Token counts that a cut may leave: all multiples of the unit, or about 24 of them."""
    lowest = math.ceil(least / unit)
    highest = (n_tokens - 1) // unit
    if highest - lowest < MAX_LEVELS:
        return [unit * j for j in range(lowest, highest + 1)]
    # Two thirds of the levels are spaced geometrically, because the loss changes most where few
    # tokens stay; one third is spaced evenly.
    curve = np.geomspace(lowest, highest, MAX_LEVELS * 2 // 3)
    even = np.linspace(lowest, highest, MAX_LEVELS // 3)
    return [unit * int(j) for j in np.unique(np.round([*curve, *even]))]


def _rest(
    more: Floats, units: NDArray[np.int64], n_units: int, moves: list[list[int]], n_cuts: int
) -> Floats:
    """[L + 1, C + 1, J, R + 1] the table V(l, c, j, r) of the recurrence above."""
    # Start with V(L, ...) = 0 and fill the layers backwards. All other entries start as infinite,
    # which also stands for an exceeded budget.
    n_layers, n_levels = more.shape[1:3]
    rest = np.full((n_layers + 1, n_cuts + 1, n_levels, n_units + 1), np.inf)
    rest[n_layers] = 0.0
    for layer in range(n_layers - 1, 0, -1):
        # No cut: V(l, c, j, r) = V(l + 1, c, j, r - n_j), a shift by n_j units along r.
        stay = rest[layer]  # [C + 1, J, R + 1], filled in place
        for j, used in enumerate(units):
            if used <= n_units:
                stay[:, j, used:] = rest[layer + 1][:, j, : n_units + 1 - used]
        # A cut to level i leaves n_i tokens in this layer already, so its continuation costs
        # V(l + 1, c - 1, i, r - n_i), which is the value without a cut at level i.
        after, best = stay[:-1].copy(), _best_added(more, layer, moves[layer])
        for j in range(1, n_levels if moves[layer] else 0):
            lower = (after[:, :j] + best[j, :j, None]).min(axis=1)
            stay[1:, j] = np.minimum(stay[1:, j], lower)
    return rest


def _best_added(more: Floats, layer: int, moves: Sequence[int]) -> Floats:
    """[J, J] the smallest loss that any of ``moves`` adds; only a drop-all leads to level 0."""
    drop = len(more) - 1
    selectors = [move for move in moves if move != drop]
    best = np.full(more.shape[2:], np.inf)
    best[:, 1:] = more[selectors, layer, :, 1:].min(axis=0, initial=np.inf)
    if drop in moves:
        best[:, 0] = more[drop, layer, :, 0]
    return best


def _first_cut(
    first: Floats,
    units: NDArray[np.int64],
    rest: Floats,
    moves: list[list[int]],
    units_left: Sequence[int],
) -> tuple[int, int, int, int] | None:
    """The best first cut: its layer, selector and level, and the units left after its layer."""
    # The first cut minimises d_s(l, j) + V(l + 1, C - 1, j, r - n_j) over l, s and j.
    best, found = np.inf, None
    for layer, (allowed, left) in enumerate(zip(moves, units_left, strict=True)):
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
    more: Floats,
    units: NDArray[np.int64],
    rest: Floats,
    moves: list[list[int]],
) -> list[tuple[int, int, int]]:
    """The cuts (layer, selector, level) of the optimum, read back from the table."""
    # Walk through the layers and repeat the minimum of the recurrence for the one state that the
    # optimum passes. A cut must be better than staying by more than rounding.
    layer, s, j, left = found
    steps, n_cuts, drop = [(layer, s, j)], rest.shape[1] - 1, len(more) - 1
    for at in range(layer + 1, rest.shape[0] - 1):
        best, choice = np.inf, (s, j)
        if units[j] <= left:
            best = rest[at + 1, n_cuts, j, left - units[j]]
        for move in moves[at] if n_cuts and j else ():
            for low in (0,) if move == drop else range(1, j):
                if units[low] > left:
                    break
                loss = more[move, at, j, low] + rest[at + 1, n_cuts - 1, low, left - units[low]]
                if loss < best - 1e-12:
                    best, choice = loss, (move, low)
        if choice != (s, j) and choice[1] != j:
            s, j = choice
            n_cuts -= 1
            steps.append((at, s, j))
        left -= int(units[j])
    return steps


def seeds(
    predictor: Predictor, budget: Budget, presets: Collection[Sequence[Cut]] = ()
) -> list[tuple[Cut, ...]]:
    """The plans to measure first, the most promising first, fitted to the budget, each once.

    They are the worst-group optimum, the best optima of other group weights, the given presets,
    for each selector the best plan of one cut and its optimum, and the best neighbours of the
    worst-group optimum.
    """
    optima = weighed_optima(predictor, budget)
    best = _descended(predictor, optima, budget)
    near = neighbours(predictor, best, budget)
    near.sort(key=predictor.score)
    plans = [best, *sorted(optima, key=predictor.score)[:4], *presets]
    if len(predictor.allowed) > 1:
        for s in predictor.allowed:
            plans.append(Solver(predictor, budget, (s,)).optimum())
    plans.extend(one_cut_plans(predictor, budget))
    plans.extend(near[:6])
    return list(dict.fromkeys(fill(predictor, plan, budget) for plan in plans))


def one_cut_plans(predictor: Predictor, budget: Budget) -> list[tuple[Cut, ...]]:
    """For each selector the plan of one cut with the smallest predicted objective.

    A drop-all may follow the cut. The prediction adds the losses of cuts up and cannot know what
    one cut does to the choices of the next, so that it favours plans of several cuts; these plans
    are what it is surest of.
    """
    limits = predictor.limits
    end, step = limits.last_layer + 1, limits.layer_step
    drops = range(limits.first_drop or end, end, step)
    found = []
    for option in (predictor.options[s] for s in predictor.allowed):
        plans = dict[tuple[Cut, ...], None]()
        for layer in range(limits.first_layer, end, step):
            if layer < option.first_layer:
                continue
            cut = Cut(layer, 1.0, option.selector, option.params)
            after = [(), *((Cut(drop, 0.0),) for drop in drops if drop > layer)]
            plans |= dict.fromkeys(fill(predictor, (cut, *rest), budget) for rest in after)
        found += sorted(plans, key=predictor.score)[:1]
    return sorted(found, key=predictor.score)
