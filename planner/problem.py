"""What a search solves: which model to prune, what the plan may cost, and how many cuts it has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.budget_projection import MAX_CUTS
from tpcal.plans.engines import Engine
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile


ALL = Budget(1.0)
"""The cost of the unpruned model."""


@dataclass(frozen=True)
class Problem:
    """The plans that a search may choose from, and the prediction of their losses.

    Raises UsageError if the budget is none that plans can be measured by, or if no plan can cut
    this decoder in the engine.

    Example:
        >>> import tpcal
        >>> from tpcal.planner.problem import Problem
        >>> Problem.of(tpcal.load_profile("tpcal-out").profile, 0.5).allows_unpruned
        False
    """

    predictor: Predictor
    budget: Budget = ALL
    """What the plan may cost; by default as much as the unpruned model."""

    def __post_init__(self) -> None:
        self.predictor.prices.check(self.budget)
        if self.engine is None:
            return
        earliest = Plan(cuts=(Cut(self.predictor.limits.first_layer, 0.0),))
        problems = self.engine.merge_problems(self.profile.merge)
        for problem in problems + self.engine.decoder_problems(self.profile.shape, earliest):
            raise UsageError(f"No plan for this model runs in {self.engine.title}. {problem}")

    @classmethod
    def of(
        cls,
        profile: Profile,
        budget: Budget | float = 1.0,
        max_cuts: int = MAX_CUTS,
        objective: Objective | None = None,
        engine: Engine | None = None,
    ) -> Problem:
        """The problem of a profile.

        Args:
            profile: What calibration found.
            budget: What the plan may cost; a number is a layer average of keep in (0, 1], met to
                within one token.
            max_cuts: Most cuts of a plan, drop-all among them.
            objective: What the search minimises; None: `Objective` with its defaults.
            engine: Where the plan has to run; None: in transformers.

        Raises:
            UsageError: The budget or the objective is invalid, or no plan runs in the engine.
        """
        budget = budget if isinstance(budget, Budget) else Budget(budget)
        return cls(Predictor(profile, objective, engine, max_cuts), budget)

    def at(self, budget: Budget | float) -> Problem:
        """The same problem with another budget."""
        return replace(self, budget=budget if isinstance(budget, Budget) else Budget(budget))

    @property
    def profile(self) -> Profile:
        """What calibration found."""
        return self.predictor.profile

    @property
    def max_cuts(self) -> int:
        """Most cuts of a plan, drop-all among them."""
        return self.predictor.limits.max_cuts

    @property
    def engine(self) -> Engine | None:
        """Where the plan has to run; None: in transformers."""
        return self.predictor.engine

    @property
    def objective(self) -> Objective:
        """What the search minimises."""
        return self.predictor.objective

    @property
    def allows_unpruned(self) -> bool:
        """Whether the unpruned model is within the budget, so that no search is needed."""
        return not fill(self.predictor, (), self.budget)
