"""The set of plans that a search may choose, and the projection of a plan on the budget.

All arithmetic is in whole token-layers: one visual token that enters one decoder layer. A budget
``target`` for ``N`` tokens and ``L`` layers is floor(target * N * L) token-layers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.exact_counts import fit_counts
from tpcal.plans.plan_records import Cut, Plan, n_keep

MAX_CUTS = 4
"""Most cuts of a plan, unless a search is asked for more."""


@dataclass(frozen=True)
class Option:
    """A selector with its parameters that the search may choose."""

    selector: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    first_layer: int = 0
    """Earliest layer before which it may cut."""


@dataclass(frozen=True)
class Limits:
    """Limits that hold for every plan of a search."""

    n_tokens: int
    """Visual tokens of a sample, N."""
    n_layers: int
    """Decoder layers, L."""
    min_count: int = 1
    """Fewest tokens that a cut leaves, unless it drops all of them."""
    first_layer: int = 0
    """Earliest layer of a cut that leaves tokens."""
    first_drop: int | None = 1
    """Earliest layer of a drop-all; None if no plan may drop all tokens."""
    stop_layer: int | None = None
    """First layer at which no cut is possible, as where layers share their KV; None if none."""
    layer_step: int = 1
    """Cuts stand before layers that are multiples of this number, and at least as many layers
    follow the last one. `first_layer` and `first_drop` are such layers."""
    default: Option = Option("grid")
    """Selector of a cut that has to be added to meet a budget."""
    max_cuts: int = MAX_CUTS
    """Most cuts of a plan, drop-all among them. Plans of one cut have no drop-all, which alone
    could only meet budgets of whole layers."""

    def __post_init__(self) -> None:
        if self.max_cuts == 1:
            object.__setattr__(self, "first_drop", None)

    @property
    def cheapest_drop(self) -> int | None:
        """Layer of the earliest drop-all behind another cut; None if no plan can have one."""
        drop = self.at_or_after(max(self.first_drop or 1, self.first_layer + 1))
        return drop if self.first_drop is not None and drop <= self.last_layer else None

    @property
    def last_layer(self) -> int:
        """Latest layer at which a cut is possible."""
        end = self.n_layers - self.layer_step + 1
        end = end if self.stop_layer is None else min(end, self.stop_layer)
        return self.at_or_before(end - 1)

    def at_or_before(self, layer: int) -> int:
        """The last multiple of the step that is not above ``layer``."""
        return layer // self.layer_step * self.layer_step

    def at_or_after(self, layer: int) -> int:
        """The first multiple of the step that is not below ``layer``."""
        return -(-layer // self.layer_step) * self.layer_step

    def nearest(self, layer: int) -> int:
        """The multiple of the step that is closest to ``layer``."""
        return self.at_or_before(layer + self.layer_step // 2)

    def budget(self, target: float) -> int:
        """The number of token-layers that ``target`` allows.

        Raises:
            UsageError: If ``target`` is not in (0, 1].
            BudgetError: If the cheapest plan costs more.
        """
        if not 0 < target <= 1:  # also catches nan
            raise UsageError(f"budget must be in (0, 1]; got {target}.")
        # The slack keeps 0.22 * 100 * 50 from falling to 1099 by binary rounding.
        allowed = math.floor(target * self.n_tokens * self.n_layers * (1 + 1e-12) + 1e-9)
        if allowed < self.cheapest:
            shown = math.ceil(self.least * 1e4) / 1e4  # rounded up, so that typing it in works
            more = "allow a second cut, or " if self.max_cuts == 1 else ""
            raise BudgetError(
                f"budget must be at least {shown:.4f} for {self.n_layers} layers, cuts from layer "
                f"{self.first_layer} on and {self.min_count} of {self.n_tokens} tokens kept; got "
                f"{target}. Ask for more, {more or 'or '}calibrate earlier layers and smaller "
                "keeps.",
                shown,
            )
        return allowed

    @property
    def least(self) -> float:
        """Smallest possible layer average of keep."""
        return self.cheapest / max(1, self.n_tokens * self.n_layers)

    @property
    def cheapest(self) -> int:
        """Token-layers of the cheapest plan: N * first + min_count * (end - first).

        The plan cuts to ``min_count`` at the first layer, and drops all at the earliest layer.
        """
        if self.n_tokens == 0:
            return 0
        end = self.n_layers
        if self.cheapest_drop is not None:
            end = self.cheapest_drop
        return self.n_tokens * self.first_layer + self.min_count * (end - self.first_layer)


def spent(cuts: Sequence[Cut], n_tokens: int, n_layers: int) -> int:
    """Token-layers of a plan, with no conditional cut firing."""
    return sum(Plan(cuts=tuple(cuts)).schedule(n_tokens, n_layers))


def exact_keep(count: int, n_tokens: int) -> float:
    """The shortest decimal of at least four digits that `n_keep` turns into ``count``."""
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
    """The plan close to ``cuts`` that uses as much of the budget as possible.

    All keeps are scaled by one factor. Then the counts move by as few tokens as needed, so that no
    other counts at these layers come closer to the budget from below. The remainder is less than
    one token of layer average. Layers move only if the budget cannot be met at them. Counts that
    meet the budget already do not change. Conditional cuts are left out, because what they save
    is not known before the run.

    Example::

        project([Cut(1, 0.5, "grid"), Cut(4, 0.1, "grid")], 0.4, n_tokens=100, n_layers=8)

    keeps 60 tokens from layer 1 and 10 from layer 4, which costs 100 * 1 + 60 * 3 + 10 * 4 = 320
    token-layers: exactly 0.4 * 100 * 8.

    Args:
        cuts: Cuts of a plan; their layers may be in any order.
        target: Layer average of keep, in (0, 1].
        n_tokens: Visual tokens per sample, N.
        n_layers: Decoder layers, L.
        limits: Further limits of the plan; by default only the rules of the plan format.

    Raises:
        UsageError: If ``target`` is not in (0, 1].
        BudgetError: If every plan within the limits costs more.
    """
    # 1. Turn the target into token-layers. The unpruned model needs no projection.
    limits = limits or Limits(n_tokens, n_layers, max_cuts=n_layers)
    budget = limits.budget(target)
    if budget >= n_tokens * n_layers or n_tokens == 0:
        return ()
    # 2. Sort the cuts, merge those at one layer, and move layers into the range where some counts
    #    meet the budget.
    kept, drop = _tidy(cuts, limits)
    kept, drop = _fit_layers(kept, drop, budget, limits)
    # 3. The cost is N * l_1 before the first cut plus sum_i k_i * (l_(i+1) - l_i) after it. Choose
    #    the counts k_i so that the sum is the largest possible one within the rest of the budget.
    end = n_layers if drop is None else drop.layer
    layers = [cut.layer for cut in kept]
    widths = tuple(b - a for a, b in itertools.pairwise([*layers, end]))
    wanted = tuple(n_keep(cut.keep, n_tokens) for cut in kept)
    left = budget - n_tokens * layers[0]
    counts = fit_counts(wanted, widths, left, limits.min_count, limits.n_tokens)
    # 4. Leave out cuts that drop no token, and write each count as a keep.
    result: list[Cut] = []
    before = n_tokens
    for cut, count in zip(kept, counts, strict=True):
        if count < before:
            result.append(replace(cut, keep=exact_keep(count, n_tokens)))
        before = count
    return (*result, drop) if drop else tuple(result)


def _tidy(cuts: Sequence[Cut], limits: Limits) -> tuple[list[Cut], Cut | None]:
    """Unconditional cuts sorted, one per layer, with falling keeps; and the drop-all, if any."""
    kept: list[Cut] = []
    drop = None
    for cut in sorted((c for c in cuts if c.condition is None), key=lambda c: c.layer):
        if n_keep(cut.keep, limits.n_tokens) == 0:
            drop = cut if limits.first_drop is not None else None
            break
        layer = min(max(limits.nearest(cut.layer), limits.first_layer), limits.last_layer)
        cut = replace(cut, layer=layer)
        if kept and kept[-1].layer == cut.layer:
            kept.pop()  # the later one decides how many stay
        if kept and n_keep(cut.keep, limits.n_tokens) >= n_keep(kept[-1].keep, limits.n_tokens):
            continue
        kept.append(cut)
    if drop is not None:
        drop = _moved(drop, max(limits.nearest(drop.layer), limits.first_drop or 1), limits)
    return kept, drop


def _moved(drop: Cut, layer: int, limits: Limits) -> Cut | None:
    """The drop-all moved to another layer; None if no cut is possible there."""
    return replace(drop, layer=layer) if layer <= limits.last_layer else None


def _fit_layers(
    kept: list[Cut], drop: Cut | None, budget: int, limits: Limits
) -> tuple[list[Cut], Cut | None]:
    """The cuts and the drop-all, moved to layers at which the budget can be met.

    The drop-all moves later if the budget cannot be used up before it, or earlier if even the
    fewest tokens cost too much. The first cut moves earlier if the tokens before it cost too much.
    """
    n, least = limits.n_tokens, limits.min_count
    if drop is not None and (n * drop.layer <= budget or not kept):
        # The drop-all comes too early to use the budget: even all tokens up to it cost no more,
        # N * l <= budget. Or it is the only cut, so that its layer alone decides the cost.
        later = limits.at_or_after(budget // n + 1)
        drop = _moved(drop, max(later, limits.first_drop or 1), limits)
    end = limits.n_layers if drop is None else drop.layer
    # Even the fewest tokens up to the end cost too much, so the end moves earlier.
    if n * limits.first_layer + least * (end - limits.first_layer) > budget:
        end = limits.first_layer + (budget - n * limits.first_layer) // least
        end = limits.at_or_before(min(end, limits.last_layer))
        if drop is None:  # it takes the place of another cut if there are as many as allowed
            drop, kept = Cut(end, 0.0), kept[: limits.max_cuts - 1]
        drop = replace(drop, layer=end)
    kept = [cut for cut in kept if cut.layer < end] or [_filler(kept, end, limits)]
    # The first cut at layer l costs at least N * l + least * (end - l), which must be within the
    # budget. Solved for l:  l <= (budget - least * end) / (N - least).
    latest = min(end - 1, (budget - least * end) // (n - least) if n > least else end - 1)
    if kept[0].layer > latest:
        kept[0] = replace(kept[0], layer=max(limits.at_or_before(latest), limits.first_layer))
    return kept, drop


def _filler(kept: list[Cut], end: int, limits: Limits) -> Cut:
    layer = limits.at_or_before(min(end - 1, limits.last_layer))
    if kept:
        return replace(kept[0], layer=layer)
    return Cut(layer, 0.5, limits.default.selector, limits.default.params)
