"""Budgets of a plan: in layer average of keep, FLOPs, KV bytes or milliseconds.

The search varies one number, the layer average of keep. Every other cost grows with it, so a plan
meets a budget of another kind at the layer average at which it costs as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tpcal.planner.prediction.conditions import share
from tpcal.plans.cost import plan_cost
from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.plan_records import Cost, Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

LAYER_AVERAGE = "layer_average"
_CLOSE = 1e-3  # a plan that costs this share of the budget less than the budget is close enough
_SLACK = 1 + 1e-9  # tolerance for binary rounding
_ROUNDS = 12


@dataclass(frozen=True)
class Kind:
    """A unit that budgets are given in."""

    says: str
    """The unit in words; it completes "a budget of 0.3 is …"."""
    of: Callable[[Cost], float]
    """Reads the cost in this unit; nan if it was not measured."""


def _milliseconds(cost: Cost) -> float:
    return math.nan if cost.prefill_ms is None else cost.prefill_ms


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        LAYER_AVERAGE: Kind("the layer average of keep", lambda cost: cost.layer_average_keep),
        "flops": Kind(
            "the share of the unpruned prefill's FLOPs",
            lambda cost: cost.prefill_flops / cost.unpruned_prefill_flops,
        ),
        "kv": Kind(
            "the share of the unpruned KV bytes",
            lambda cost: cost.kv_bytes / cost.unpruned_kv_bytes,
        ),
        "ms": Kind("the milliseconds of a prefill", _milliseconds),
    }
)


@dataclass(frozen=True)
class Budget:
    """The largest cost of a plan in one unit.

    Example:
        >>> import tpcal
        >>> tpcal.Budget(0.4, "kv").label  # at most 40 % of the unpruned KV bytes
        '0.4-kv'
    """

    target: float
    """Largest cost: a share in (0, 1], or milliseconds."""
    kind: str = LAYER_AVERAGE
    """One of `KINDS`."""

    @property
    def label(self) -> str:
        """A short unique text, which is part of the name of a study."""
        return f"{self.target:g}" if self.kind == LAYER_AVERAGE else f"{self.target:g}-{self.kind}"


@dataclass(frozen=True)
class Prices:
    """Costs of plans for the typical prompt of a profile."""

    profile: Profile

    def of(self, cuts: Sequence[Cut], kind: str) -> float:
        """The expected cost of a plan: a share of the unpruned cost, or milliseconds."""
        p = self.profile
        # A conditional cut fires for a share q of the samples. The expected cost is therefore
        #     E[cost] = q * cost(plan with the cut) + (1 - q) * cost(plan without the cut),
        # where both costs are expectations over the conditional cuts that remain.
        for i, cut in enumerate(cuts):
            if cut.condition is not None:
                part = share(p, cut)
                fired = self.of([*cuts[:i], Cut(cut.layer, cut.keep)], kind) if part else 0.0
                return part * fired + (1 - part) * self.of([*cuts[:i], *cuts[i + 1 :]], kind)
        plan = Plan(cuts=tuple(cuts), merge=p.merge)
        return KINDS[kind].of(
            plan_cost(plan, p.shape, p.n_tokens, p.n_text, p.layer_ms, p.executor_ms)
        )

    def check(self, budget: Budget) -> None:
        """Raises UsageError if the profile cannot measure plans by this budget.

        Raises:
            UsageError: If the kind is unknown, the target is out of range, or the budget is in
                milliseconds and the profile has no layer times.
        """
        if budget.kind not in KINDS:
            raise UsageError(f"budget must be in {', '.join(KINDS)}; got {budget.kind}.")
        if budget.kind == "ms" and not self.profile.layer_ms:
            raise UsageError(
                "A budget in ms must have a profile with layer times; this one has none. Run "
                "tpcal calibrate on the hardware to plan for."
            )
        most = math.inf if budget.kind == "ms" else 1.0
        if not 0 < budget.target <= most:  # also catches nan
            rule = "be above 0" if budget.kind == "ms" else "be in (0, 1]"
            raise UsageError(f"budget must {rule}; got {budget.target}.")

    def average(self, budget: Budget) -> float:
        """The layer average at which a single cut before the decoder costs the budget.

        Other plans of that average cost slightly more FLOPs and time, because the cost of
        attention is quadratic in the number of tokens.
        """
        if budget.kind == LAYER_AVERAGE:
            return budget.target
        from scipy.optimize import brentq

        def over(keep: float) -> float:
            return self.of([Cut(0, keep, "grid")], budget.kind) - budget.target

        # The cost of one cut to keep k grows with k, so cost(k) = target has one root, which
        # Brent's method finds. Targets outside [cost(0), cost(1)] give the nearer end.
        if over(1.0) <= 0 or over(0.0) >= 0:
            return 1.0 if over(1.0) <= 0 else 0.0
        return float(brentq(over, 0.0, 1.0, xtol=1e-4))

    def met(
        self,
        budget: Budget,
        at: Callable[[float], tuple[Cut, ...]],
        cheapest: float,
    ) -> tuple[Cut, ...]:
        """The most expensive plan ``at(layer average)`` that is found within the budget.

        Args:
            budget: Budget of any kind.
            at: Returns a plan of the given layer average, or the closest one below it.
            cheapest: Smallest possible layer average.

        Raises:
            BudgetError: If even the cheapest plan costs more than the budget.
        """
        if budget.kind == LAYER_AVERAGE:
            plan = at(budget.target)
            if all(cut.condition is None for cut in plan):
                return plan
        unpruned = self.of((), budget.kind)
        if unpruned <= budget.target:
            return ()
        best = at(cheapest)
        low_price = self.of(best, budget.kind)
        if low_price > budget.target * _SLACK:
            shown = math.ceil(low_price * 1e4) / 1e4
            raise BudgetError(
                f"budget ({KINDS[budget.kind].says}) must be at least {shown:g} for this profile; "
                f"got {budget.target:g}. Ask for more, or calibrate earlier layers and smaller "
                "keeps.",
                shown,
            )
        # Let p(a) be the cost of the plan of layer average a. p is nearly a straight line, so its
        # slope is estimated once, from the cheapest plan and the unpruned model:
        #     slope = (p(1) - p(cheapest)) / (1 - cheapest)
        # Each round then takes the secant step a + (target - p(a)) / slope. If p(a) exceeds the
        # target, the step goes one token-layer further down, so that the next plan is cheaper. If
        # the step leaves the interval (low, high) that holds the solution, the interval is halved
        # instead. The best plan within the budget so far is returned after `_ROUNDS` rounds.
        slope = (unpruned - low_price) / (1 - cheapest)
        cell = 1 / (self.profile.n_tokens * self.profile.shape.n_layers)
        low, high = cheapest, 1.0
        average = cheapest + (budget.target - low_price) / slope
        for _ in range(_ROUNDS):
            plan = at(average)
            left = budget.target * _SLACK - self.of(plan, budget.kind)
            if left >= 0:
                low, best = average, plan
                if left <= _CLOSE * budget.target:
                    break
            else:
                high, left = average, left - slope * cell
            step = average + left / slope
            average = step if low < step < high else (low + high) / 2
        return best
