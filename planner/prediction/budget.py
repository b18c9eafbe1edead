"""What a plan may cost, in the currencies people have: tokens, FLOPs, KV bytes, milliseconds.

A search moves along one line, the layer average of keep. Every other cost grows with it, so a plan
is put on such a budget by finding the layer average at which it costs as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from scipy.optimize import brentq

from tpcal.planner.prediction.conditions import share
from tpcal.plans.cost import plan_cost
from tpcal.plans.errors import BudgetError, UsageError
from tpcal.plans.schema import Cost, Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

LAYER_AVERAGE = "layer_average"
_CLOSE = 1e-3  # of the budget: near enough from below
_SLACK = 1 + 1e-9  # binary rounding
_ROUNDS = 12


@dataclass(frozen=True)
class Kind:
    """A currency."""

    says: str
    """Completes "a budget of 0.3 is …"."""
    of: Callable[[Cost], float]


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
    """How much a plan may cost."""

    target: float
    kind: str = LAYER_AVERAGE
    """One of `KINDS`."""

    @property
    def label(self) -> str:
        """Short and unique, as in the name of a study."""
        return f"{self.target:g}" if self.kind == LAYER_AVERAGE else f"{self.target:g}-{self.kind}"


@dataclass(frozen=True)
class Prices:
    """What plans cost for the typical prompt of a profile."""

    profile: Profile

    def of(self, cuts: Sequence[Cut], kind: str) -> float:
        """The cost of a plan; a share, or milliseconds. Of a conditional drop, what to expect."""
        p = self.profile
        for i, cut in enumerate(cuts):
            if cut.condition is not None:
                part = share(p, cut)
                fired = self.of([*cuts[:i], Cut(cut.layer, cut.keep)], kind) if part else 0.0
                return part * fired + (1 - part) * self.of([*cuts[:i], *cuts[i + 1 :]], kind)
        plan = Plan(cuts=tuple(cuts))
        return KINDS[kind].of(
            plan_cost(plan, p.shape, p.n_tokens, p.n_text, p.layer_ms, p.executor_ms)
        )

    def check(self, budget: Budget) -> None:
        """Nothing, where the budget is one that plans can be measured by.

        Raises:
            UsageError: No such kind, not a share above 0 and at most 1, or no times were measured.
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
        """The layer average at which one cut before the decoder costs as much.

        Other plans of that average cost a little more FLOPs and time, as attention is quadratic.
        """
        if budget.kind == LAYER_AVERAGE:
            return budget.target

        def over(keep: float) -> float:
            return self.of([Cut(0, keep, "grid")], budget.kind) - budget.target

        if over(1.0) <= 0 or over(0.0) >= 0:
            return 1.0 if over(1.0) <= 0 else 0.0
        return float(brentq(over, 0.0, 1.0, xtol=1e-4))

    def met(
        self,
        budget: Budget,
        at: Callable[[float], tuple[Cut, ...]],
        cheapest: float,
    ) -> tuple[Cut, ...]:
        """The dearest of the plans ``at(layer average)`` that the budget allows.

        Args:
            budget: Of any kind.
            at: A plan that costs the layer average it is called with, or as much as can be below.
            cheapest: Smallest layer average there is.

        Raises:
            BudgetError: Even the cheapest plan costs more.
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
        slope = (unpruned - low_price) / (1 - cheapest)  # prices are nearly straight lines
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
