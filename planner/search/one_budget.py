"""Chooses a plan for a budget: prediction first, then an Optuna study on the measured loss.

The loss is `Objective` of the groups' KL(full || pruned). A study continues where it stopped, and
the same seed gives the same plan, interrupted or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search import front as fronts
from tpcal.planner.search.finals import play
from tpcal.planner.search.finished_plan import finished_plan
from tpcal.planner.search.front import Point
from tpcal.planner.search.ledger import (
    GroupMeans,
    Ledger,
    Tried,
    cuts_of,
    finished,
    fully_measured,
    means_of,
    rank,
    tried,
)
from tpcal.planner.search.loss_limits import Allowance
from tpcal.planner.search.run import Loop, prepare
from tpcal.planner.search.samplers import SAMPLERS
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import UsageError
from tpcal.plans.schema import Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

Progress = Callable[[int, int, str], None]
N_TRIALS = 100


@dataclass(frozen=True)
class Result:
    """What a search found."""

    plan: Plan
    front: tuple[Point, ...]
    trials: tuple[Tried, ...] = ()
    study: str | None = None


def search(
    profile: Profile,
    budget: Budget | float,
    *,
    measurer: Measures | None = None,
    finals: Measures | None = None,
    n_trials: int = N_TRIALS,
    timeout: float | None = None,
    seed: int = 0,
    storage: Path | str | BaseStorage | None = None,
    max_cuts: int = 4,
    max_loss: float | None = None,
    weights: Mapping[str, float] | None = None,
    sampler: str = "tpe",
    propose: bool = True,
    command: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """The plan that loses least within a budget, and the front it lies on.

    Args:
        profile: What calibration found.
        budget: What the plan may cost; a number is a layer average of keep in (0, 1], met to
            within one token.
        measurer: Runs the model; None: the plan is chosen by prediction alone, without Optuna.
        finals: Measures the best plans again, on other samples; the plan's loss is from these.
        n_trials: Plans measured in all, those of earlier runs of the study among them. Suggestions
            that repeat a plan are not measured again and not counted, up to 4 per trial.
        timeout: Seconds after which no further trial starts.
        seed: Of the sampler.
        storage: Journal file or database URL that keeps the study; None: memory.
        max_cuts: Most cuts of a plan, drop-all among them.
        max_loss: Nats the worst group may lose.
        weights: What the loss of a group counts beside that of the others (`Objective`).
        sampler: One of `tpcal.planner.search.samplers.SAMPLERS`.
        propose: Whether seeds and proposals take turns with the sampler; for comparisons.
        command: What the user typed, for the plan's provenance.
        progress: Told after every trial.

    Raises:
        UsageError: A bad budget, weight or sampler, or ``storage`` cannot be used.
        BudgetError: No plan is that cheap.
        GuardrailError: The best plan's worst group loses more than ``max_loss``.
    """
    predictor = Predictor(profile, Objective(weights or {}))
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    predictor.prices.check(budget)
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler must be one of {', '.join(SAMPLERS)}; got {sampler}.")
    facts: dict[str, Any] = {"seed": seed, "command": command, "weights": weights or None}
    if measurer is None or not fill(predictor, (), budget):
        cuts = worst_group_optimum(predictor, budget, max_cuts)
        points = [*fronts.predictions(predictor, max_cuts), fronts.point(predictor, cuts)]
        result = _finished(predictor, budget, cuts, facts | {"sampler": "prediction only"}, points)
    else:
        ledger = Ledger.open(storage, profile)
        loop = prepare(
            predictor,
            budget,
            measurer,
            ledger,
            seed=seed,
            max_cuts=max_cuts,
            sampler=sampler,
            propose=propose,
        )
        loop.run(n_trials, timeout, progress)
        facts |= {"sampler": f"{sampler} and proposals" if propose else sampler}
        result = _conclude(loop, facts, ledger, finals, progress)
    _guard(result.plan, max_loss)
    return result


def _conclude(
    loop: Loop,
    facts: dict[str, Any],
    ledger: Ledger,
    finals: Measures | None,
    progress: Progress | None,
) -> Result:
    study, predictor = loop.study, loop.predictor
    full = fully_measured(study)
    facts = facts | {"study": study.study_name, "n_trials": len(full)}
    known = fronts.measured(predictor, ledger.studies(loop.measurer))
    points = [found.point for found in known]
    means: GroupMeans | None = None
    if not full:  # no time, no trials
        cuts = worst_group_optimum(predictor, loop.budget, loop.encoding.max_cuts)
    else:
        best = min(full, key=rank)
        means = means_of(best)
        final = finals and play(study, loop.measurer, finals, predictor.objective, progress)
        if final:
            best, means = final.trial, final.means
        cuts = cuts_of(best)
    result = _finished(predictor, loop.budget, cuts, facts, points, means)
    return replace(result, trials=tuple(map(tried, finished(study))), study=study.study_name)


def _finished(
    predictor: Predictor,
    budget: Budget,
    cuts: tuple[Cut, ...],
    facts: dict[str, Any],
    points: Sequence[Point],
    means: GroupMeans | None = None,
) -> Result:
    front = fronts.pareto(points)
    beside = fronts.beside(front, fronts.average(predictor, cuts))
    plan = finished_plan(predictor, budget, cuts, facts | {"front": beside or None}, means)
    return Result(plan, front)


def _guard(plan: Plan, max_loss: float | None) -> None:
    if max_loss is None or plan.loss is None:
        return
    kind = "measured" if plan.loss.measured else "predicted"
    losses = plan.loss.measured or plan.loss.predicted
    Allowance(max_loss).guard(losses, plan.loss.changed, {}, kind)
