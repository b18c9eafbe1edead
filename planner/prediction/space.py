"""The plans a search may choose: how they meet a budget exactly, and what lies next to a plan.

All arithmetic is in whole token-layers: one visual token entering one decoder layer. A budget of
``target`` on ``N`` tokens and ``L`` layers is floor(target * N * L) of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.schema import Cut, Plan, n_keep


@dataclass(frozen=True)
class Option:
    """A selector with its parameters, as a choice of the search."""

    selector: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    first_layer: int = 0
    """Earliest layer it may stand before."""


@dataclass(frozen=True)
class Limits:
    """What every plan of a search keeps to."""

    n_tokens: int
    n_layers: int
    min_count: int = 1
    """Fewest tokens a cut leaves unless it drops all."""
    first_layer: int = 0
    """Earliest layer of a cut that leaves some."""
    first_drop: int | None = 1
    """Earliest layer of a drop-all; None: no plan drops all."""
    stop_layer: int | None = None
    """First layer that no cut may stand before, as where layers share their KV; None: all may."""
    default: Option = Option("grid")
    """Chooses the tokens of a cut that has to be added to meet a budget."""

    @property
    def cheapest_drop(self) -> int | None:
        """Layer of the earliest drop-all behind another cut; None: there is none."""
        drop = max(self.first_drop or 1, self.first_layer + 1)
        return drop if self.first_drop is not None and drop <= self.last_layer else None

    @property
    def last_layer(self) -> int:
        """Latest layer of a cut."""
        return (self.n_layers if self.stop_layer is None else self.stop_layer) - 1

    def budget(self, target: float) -> int:
        """Token-layers that ``target`` allows.

        Raises:
            UsageError: Not a number in (0, 1].
            BudgetError: Less than the cheapest plan costs.
        """
        if not 0 < target <= 1:  # also catches nan
            raise UsageError(f"budget must be in (0, 1]; got {target}.")
        # The slack keeps 0.22 * 100 * 50 from falling to 1099 by binary rounding.
        allowed = math.floor(target * self.n_tokens * self.n_layers * (1 + 1e-12) + 1e-9)
        if allowed < self.cheapest:
            shown = math.ceil(self.least * 1e4) / 1e4  # rounded up, so that typing it in works
            raise BudgetError(
                f"budget must be at least {shown:.4f} for {self.n_layers} layers, cuts from layer "
                f"{self.first_layer} on and {self.min_count} of {self.n_tokens} tokens kept; got "
                f"{target}. Ask for more, or calibrate earlier layers and smaller keeps.",
                shown,
            )
        return allowed

    @property
    def least(self) -> float:
        """Smallest layer average of keep."""
        return self.cheapest / max(1, self.n_tokens * self.n_layers)

    @property
    def cheapest(self) -> int:
        """Token-layers of the cheapest plan that cuts early to ``min_count`` and drops all."""
        if self.n_tokens == 0:
            return 0
        end = self.n_layers
        if self.cheapest_drop is not None:
            end = self.cheapest_drop
        return self.n_tokens * self.first_layer + self.min_count * (end - self.first_layer)


def spent(cuts: Sequence[Cut], n_tokens: int, n_layers: int) -> int:
    """Token-layers of a plan; conditional cuts are counted as not firing."""
    return sum(Plan(cuts=tuple(cuts)).schedule(n_tokens, n_layers))


def exact_keep(count: int, n_tokens: int) -> float:
    """The shortest decimal that `n_keep` turns into ``count``, with four digits or more."""
    for digits in range(4, 17):
        keep = round(count / n_tokens, digits)
        if n_keep(keep, n_tokens) == count and 0 < keep <= 1:
            return keep
    raise AssertionError(f"no decimal keeps {count} of {n_tokens}")


def project(
    cuts: Sequence[Cut],
    target: float,
    n_tokens: int,
    n_layers: int,
    *,
    limits: Limits | None = None,
) -> tuple[Cut, ...]:
    """The plan next to ``cuts`` that costs the most the budget allows.

    Keeps are scaled by one factor, then counts move by as few tokens as needed, so that no other
    counts on these layers come closer to the budget from below; the rest is below one token of
    layer average. Layers move only where the budget cannot be met on them. Counts that meet
    the budget already stay. Conditional cuts are left out: what they save
    is not known before the run.

    Args:
        cuts: A plan; layers in any order.
        target: Layer average of keep, in (0, 1].
        n_tokens: Visual tokens per sample.
        n_layers: Decoder layers.
        limits: What else the plan keeps to; by default only the rules of a plan.

    Raises:
        UsageError: ``target`` is not in (0, 1].
        BudgetError: No plan within the limits is that cheap.
    """
    limits = limits or Limits(n_tokens, n_layers)
    budget = limits.budget(target)
    if budget >= n_tokens * n_layers or n_tokens == 0:
        return ()
    kept, drop = _tidy(cuts, limits)
    kept, drop = _fit_layers(kept, drop, budget, limits)
    end = n_layers if drop is None else drop.layer
    layers = [cut.layer for cut in kept]
    widths = [b - a for a, b in itertools.pairwise([*layers, end])]
    counts = [n_keep(cut.keep, n_tokens) for cut in kept]
    counts = _fit_counts(counts, widths, budget - n_tokens * layers[0], limits)
    result: list[Cut] = []
    before = n_tokens
    for cut, count in zip(kept, counts, strict=True):
        if count < before:
            result.append(replace(cut, keep=exact_keep(count, n_tokens)))
        before = count
    return (*result, drop) if drop else tuple(result)


def _tidy(cuts: Sequence[Cut], limits: Limits) -> tuple[list[Cut], Cut | None]:
    """Cuts in order, one a layer, keeps falling; the drop-all apart."""
    kept: list[Cut] = []
    drop = None
    for cut in sorted((c for c in cuts if c.condition is None), key=lambda c: c.layer):
        if n_keep(cut.keep, limits.n_tokens) == 0:
            drop = cut if limits.first_drop is not None else None
            break
        layer = min(max(cut.layer, limits.first_layer), limits.last_layer)
        cut = replace(cut, layer=layer)
        if kept and kept[-1].layer == cut.layer:
            kept.pop()  # the later one decides how many stay
        if kept and n_keep(cut.keep, limits.n_tokens) >= n_keep(kept[-1].keep, limits.n_tokens):
            continue
        kept.append(cut)
    if drop is not None:
        drop = _moved(drop, max(drop.layer, limits.first_drop or 1), limits)
    return kept, drop


def _moved(drop: Cut, layer: int, limits: Limits) -> Cut | None:
    """The drop-all at another layer; None past the last one that allows it."""
    return replace(drop, layer=layer) if layer <= limits.last_layer else None


def _fit_layers(
    kept: list[Cut], drop: Cut | None, budget: int, limits: Limits
) -> tuple[list[Cut], Cut | None]:
    """Moves the drop-all down and the first cut up as far as the budget forces them."""
    n, least = limits.n_tokens, limits.min_count
    if drop is not None and (n * drop.layer <= budget or not kept):
        # Too early to spend the budget, or alone, where only its layer can meet it.
        drop = _moved(drop, max(budget // n + 1, limits.first_drop or 1), limits)
    end = limits.n_layers if drop is None else drop.layer
    if n * limits.first_layer + least * (end - limits.first_layer) > budget:
        end = limits.first_layer + (budget - n * limits.first_layer) // least
        end = min(end, limits.last_layer)
        drop = replace(drop, layer=end) if drop else Cut(layer=end, keep=0.0)
    kept = [cut for cut in kept if cut.layer < end] or [_filler(kept, end, limits)]
    latest = min(end - 1, (budget - least * end) // (n - least) if n > least else end - 1)
    if kept[0].layer > latest:
        kept[0] = replace(kept[0], layer=max(latest, limits.first_layer))
    return kept, drop


def _filler(kept: list[Cut], end: int, limits: Limits) -> Cut:
    if kept:
        return replace(kept[0], layer=min(end - 1, limits.last_layer))
    return Cut(
        min(end - 1, limits.last_layer), 0.5, limits.default.selector, limits.default.params
    )


def _fit_counts(counts: list[int], widths: list[int], budget: int, limits: Limits) -> list[int]:
    """Non-increasing counts near ``counts`` whose cost is the largest within ``budget``."""
    least, most = limits.min_count, limits.n_tokens
    best = _largest(widths, budget, least, most)
    if _cost(counts, widths) == best and least <= counts[-1] and counts[0] <= most:
        return counts
    low, high = 0.0, most / min(counts)
    for _ in range(50):
        middle = (low + high) / 2
        scaled = [min(most, max(least, math.floor(c * middle))) for c in counts]
        low, high = (middle, high) if _cost(scaled, widths) <= budget else (low, middle)
    scaled = [min(most, max(least, math.floor(c * low))) for c in counts]
    return _nudge(scaled, widths, best, least, most)


def _cost(counts: Sequence[int], widths: Sequence[int]) -> int:
    return sum(c * w for c, w in zip(counts, widths, strict=True))


def _steps(widths: Sequence[int]) -> list[int]:
    """Cost of one more token that stays through the first i + 1 cuts."""
    return list(itertools.accumulate(widths))


def _largest(widths: Sequence[int], budget: int, least: int, most: int) -> int:
    """The largest cost within ``budget`` of any non-increasing counts in [least, most].

    Raising the first i counts by one costs steps[i]; at most ``most - least`` such raises fit.
    """
    steps, room = _steps(widths), most - least
    base = least * steps[-1]
    rest = budget - base
    if rest >= room * steps[-1]:
        return base + room * steps[-1]
    common = math.gcd(*steps)
    wanted = rest - rest % common
    while _fewest(steps, wanted, room) is None:
        wanted -= common
    return base + wanted


def _fewest(steps: Sequence[int], total: int, room: int) -> list[int] | None:
    """How often to take each step to sum to ``total`` with at most ``room`` of them, or None."""
    *small, large = steps
    if not small:
        return [total // large] if total % large == 0 and total // large <= room else None
    # Every use of smaller steps beyond large - 1 holds a subset that sums to a multiple of
    # `large`, which fewer large steps replace; so a few small ones are enough.
    for n_small in range(large):
        for picks in itertools.combinations_with_replacement(range(len(small)), n_small):
            rest = total - sum(small[p] for p in picks)
            if rest >= 0 and rest % large == 0 and rest // large + n_small <= room:
                return [*(picks.count(i) for i in range(len(small))), rest // large]
    return None


def _nudge(counts: list[int], widths: list[int], wanted: int, least: int, most: int) -> list[int]:
    """Counts of cost ``wanted`` that differ from ``counts`` by few tokens."""
    head = len(counts) - 1
    for reach in (1, 2, 4, 8):
        found = None
        for moves in itertools.product(range(-reach, reach + 1), repeat=head):
            trial = [c + m for c, m in zip(counts, moves, strict=False)]
            rest = wanted - _cost(trial, widths[:head])
            if rest % widths[-1]:
                continue
            trial.append(rest // widths[-1])
            falling = all(a >= b for a, b in itertools.pairwise(trial))
            if not falling or trial[0] > most or trial[-1] < least:
                continue
            far = sum(abs(a - b) for a, b in zip(trial, counts, strict=True))
            if found is None or far < found[0]:
                found = (far, trial)
        if found:
            return found[1]
    raises = _fewest(_steps(widths), wanted - least * sum(widths), most - least)
    assert raises is not None
    return [least + sum(raises[i:]) for i in range(len(raises))]
