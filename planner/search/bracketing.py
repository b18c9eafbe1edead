"""Brackets the cost of the cheapest plan within limits, by the corrected prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpcal.planner.problem import Problem
from tpcal.planner.search import front as fronts
from tpcal.planner.search.ledger import TrialRecord
from tpcal.planner.search.loss_limits import LossLimits
from tpcal.plans.plan_records import Cut

LEAST_STEP = 0.02
"""Distance in layer average that a guess keeps from the ends of a wide interval."""
CLOSE = 0.004
"""Width below which an interval is not searched further."""


@dataclass
class Bracket:
    """Narrows an interval of layer averages that holds the cheapest plan within the limits.

    The interval is (low, high): at ``low`` no plan within the limits was found, and a plan that
    costs ``high`` is within. Each search moves one of both ends.
    """

    problem: Problem
    loss_limits: LossLimits
    sizes: Mapping[str, int]
    low: float = 0.0
    """A search failed here; at first, no plan is this cheap."""
    high: float = 1.0
    """A plan of this cost is within: at first the unpruned model."""
    scale: float = 1.0
    """How many times the predicted loss was measured in the last search."""

    def __post_init__(self) -> None:
        predictor = self.problem.predictor
        self.low = predictor.limits.least
        points = list(fronts.predictions(predictor))
        self._costs = np.array([point.layer_average_keep for point in points])
        times = [self.predicted(point.cuts) for point in points]
        self._times = np.minimum.accumulate(times)

    def next(self) -> float:
        """The budget to search: where the prediction, as corrected so far, crosses the limit."""
        # Measured times = scale * predicted times. So the limit, 1, is met where the prediction is
        # 1 / scale, which is interpolated on the predicted front. A margin keeps the guess inside.
        wanted = 1 / self.scale if self.scale > 0 else np.inf
        guess = float(np.interp(-wanted, -self._times, self._costs))
        margin = min(0.2 * (self.high - self.low), LEAST_STEP)
        least = self.low + margin
        if self.high < 1:  # one measured loss that is far off says little of much cheaper plans
            least = max(least, self.high / 2)
        return round(min(max(guess, least), self.high - margin), 4)

    @property
    def done(self) -> bool:
        """Whether there is nothing between the two worth another search."""
        return self.high - self.low < CLOSE

    def learn(self, budget: float, cuts: tuple[Cut, ...], times: float) -> None:
        """Takes in what a search found: its best plan, and how many times the limit that loses."""
        expected = self.predicted(cuts)
        if expected > 0:
            self.scale = times / expected
        if times <= 1:
            self.high = min(self.high, self.cost(cuts))
        else:
            self.low = max(self.low, budget)

    def times(self, trial: TrialRecord) -> float:
        """How many times the limit a measured plan loses."""
        return self.loss_limits.times(trial.measured, trial.flips, self.sizes)

    def predicted(self, cuts: Sequence[Cut]) -> float:
        """How many times the limit a plan is predicted to lose."""
        predictor = self.problem.predictor
        return self.loss_limits.times(predictor.loss(cuts), predictor.flips(cuts), self.sizes)

    def cost(self, cuts: tuple[Cut, ...]) -> float:
        """Layer average of keep."""
        return fronts.average(self.problem.predictor, cuts)
