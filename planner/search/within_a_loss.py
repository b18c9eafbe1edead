"""The cheapest plan that loses no more than is allowed, found by searches at a few budgets.

Each of them is a study like that of any other budget. So an interrupted run continues, budgets
that were searched before cost nothing, and what is measured here serves later searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.problem import Problem
from tpcal.planner.search import front as fronts
from tpcal.planner.search.bracketing import Bracket
from tpcal.planner.search.finals import completed, group_sizes, measured_again
from tpcal.planner.search.finished_plan import finished_plan, search_facts
from tpcal.planner.search.front import Point
from tpcal.planner.search.ledger import (
    GroupMeans,
    Ledger,
    cuts_of,
    fully_measured,
    means_of,
    trial_record,
)
from tpcal.planner.search.loss_limits import LossLimits
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.run import run
from tpcal.planner.search.sampler import SUGGESTED_BY
from tpcal.planner.search.settings import SearchSettings
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import GuardrailError
from tpcal.plans.plan_records import FURTHER, OWN, Cuts, Plan

N_SEARCHES = 5
LAST_SHARE = 1 / 3
"""Share of the trials for the last search; the ones before it only locate its budget."""
FEWEST_TRIALS = 6
N_HALVINGS = 10


def cheapest(
    problem: Problem,
    loss_limits: LossLimits,
    *,
    measurer: Measures | None = None,
    finals: Measures | None = None,
    settings: SearchSettings | None = None,
) -> Plan:
    """The plan with the smallest layer average of all measured ones that are within the limits.

    If a limit is 0, that is the unpruned model.

    Example:
        >>> import tpcal
        >>> from tpcal.planner.problem import Problem
        >>> from tpcal.planner.search.loss_limits import LossLimits
        >>> from tpcal.planner.search.within_a_loss import cheapest
        >>> problem = Problem.of(tpcal.load_profile("tpcal-out").profile)
        >>> cheapest(problem, LossLimits(max_loss=100.0)).cost.layer_average_keep < 1
        True

    Args:
        problem: The profile and how many cuts the plan may have; its budget is not looked at.
        loss_limits: The limits.
        measurer: Runs the model; None: the cheapest plan by prediction.
        finals: Measures plans on other samples, where they have to be within as well: the
            cheapest of many measured plans owes some of that to the samples it was chosen by.
        settings: How the searches run; fewer trials are measured if that is enough to tell.

    Raises:
        UsageError: ``settings.storage`` cannot be used, or there is no limit.
        GuardrailError: No plan is within.
    """
    settings = settings or SearchSettings()
    if measurer is None or loss_limits.nothing:
        return _predicted(problem, loss_limits, settings)
    found = explore(problem, loss_limits, measurer=measurer, finals=finals, settings=settings)
    if finals is None:
        return found.plan(0)
    for place, trial in enumerate(found.trials):
        if settings.progress is not None:
            settings.progress(place, len(found.trials), "finalists")
        second = measured_again(found.studies[place], trial, finals)
        times = loss_limits.times(second.measured, second.flips, group_sizes(finals))
        if times <= 1:
            return found.plan(place, completed(second, means_of(trial)))
    raise _refusal(times, found.cost(-1), "on further samples ")


def explore(
    problem: Problem,
    loss_limits: LossLimits,
    *,
    measurer: Measures,
    finals: Measures | None = None,
    settings: SearchSettings | None = None,
) -> PlansWithinLimits:
    """The measured plans within the limits that no other beats; arguments as `cheapest`.

    Raises:
        UsageError: As `cheapest`.
        GuardrailError: No measured plan is within.
    """
    settings = settings or SearchSettings()
    loss_limits.check()
    bracket = Bracket(problem, loss_limits, group_sizes(measurer))
    ledger = Ledger.open(settings.storage, problem.profile)
    end, done = settings.end, 0
    for n in _shares(settings.n_trials):
        part, budget = settings.part(done, n, settings.n_trials, end), bracket.next()
        study = run(problem.at(budget), measurer, ledger, part)
        done += n
        best = _best(bracket, study, finals)
        if best is None or part.timeout == 0:
            break
        bracket.learn(budget, *best)
        if bracket.done:
            break
    return _plans_within(bracket, ledger.studies(measurer), settings)


@dataclass(frozen=True)
class PlansWithinLimits:
    """Measured plans within the limits, cheapest first; each loses more than the next one."""

    problem: Problem
    loss_limits: LossLimits
    trials: tuple[FrozenTrial, ...]
    studies: tuple[Study, ...]
    """The study of each trial."""
    front: tuple[Point, ...]
    """The front of all plans that were measured on these samples."""
    facts: Mapping[str, Any]

    def cost(self, place: int) -> float:
        """Layer average of keep."""
        return fronts.average(self.problem.predictor, cuts_of(self.trials[place]))

    def plan(self, place: int, means: GroupMeans | None = None) -> Plan:
        """One of them.

        Args:
            place: Its place among the trials.
            means: What it lost; None: what was measured in its trial.
        """
        trial, study = self.trials[place], self.studies[place]
        beside = fronts.neighbours_on_front(self.front, self.cost(place))
        plan = finished_plan(
            self.problem.at(self.cost(place)),
            cuts_of(trial),
            {
                **self.facts,
                "study": study.study_name,
                "measured_on": OWN if means is None else FURTHER,
                "front": beside or None,
            },
            means_of(trial) if means is None else means,
        )
        return limited(plan, self.loss_limits)

    def row(self, most: int) -> list[Plan]:
        """At most ``most`` of them, evenly spread, in the order of a proof: the dearest first."""
        last, n = len(self.trials) - 1, min(most, len(self.trials))
        places = [round(i * last / max(1, n - 1)) for i in range(n)]
        return [self.plan(place) for place in reversed(places)]


def limited(plan: Plan, loss_limits: LossLimits) -> Plan:
    """The plan with its limits in place of a budget."""
    assert plan.loss is not None, "searches predict"
    most = loss_limits.max_loss, loss_limits.max_flips
    loss = replace(plan.loss, max_loss=most[0], max_flips=most[1])
    return replace(plan, budget=None, loss=loss)


def _predicted(problem: Problem, loss_limits: LossLimits, settings: SearchSettings) -> Plan:
    """By prediction alone: the layer average is halved until the limit is met."""
    loss_limits.check()
    if loss_limits.nothing:
        return limited(search(problem.at(1.0), settings=settings).plan, loss_limits)
    bracket = Bracket(problem, loss_limits, group_sizes(problem.profile))
    found, most = None, 0.0
    for _ in range(N_HALVINGS):
        middle = round((bracket.low + bracket.high) / 2, 4)
        cuts = worst_group_optimum(problem.predictor, Budget(middle))
        most = bracket.predicted(cuts)
        if most <= 1:
            found, bracket.high = middle, middle
        else:
            bracket.low = middle
    if found is None:
        raise _refusal(most, bracket.low, "by prediction ")
    return limited(search(problem.at(found), settings=settings).plan, loss_limits)


def _best(bracket: Bracket, study: Study, finals: Measures | None) -> tuple[Cuts, float] | None:
    """The plan of a search that loses least, and how many times the limit; on further samples
    too, as it would be the one to look good by chance."""
    trials = [
        (bracket.times(trial_record(trial)), trial.number, trial)
        for trial in fully_measured(study)
    ]
    if not trials:
        return None
    times, _, best = min(trials, key=lambda each: each[:2])
    if finals is not None and times <= 1:
        second = measured_again(study, best, finals)
        more = bracket.loss_limits.times(second.measured, second.flips, group_sizes(finals))
        times = max(times, more)
    return cuts_of(best), times


def _plans_within(
    bracket: Bracket, studies: Sequence[Study], settings: SearchSettings
) -> PlansWithinLimits:
    known = [
        (study, trial)
        for study in studies
        for trial in fully_measured(study)
        if bracket.problem.predictor.allows(cuts := cuts_of(trial))
        and len(cuts) <= bracket.problem.max_cuts
    ]
    if not known:
        raise GuardrailError(
            "No plan within the limit was found, as none was measured in time. Raise --timeout."
        )
    times = [bracket.times(trial_record(trial)) for _, trial in known]
    costs = [bracket.cost(cuts_of(trial)) for _, trial in known]
    # Plans that differ by a token or two cost the same: of these the one that loses less.
    order = sorted(range(len(known)), key=lambda i: (round(costs[i], 3), times[i], costs[i]))
    chosen: list[int] = []
    for i in order:
        if costs[i] < 1 and times[i] <= 1 and (not chosen or times[i] < times[chosen[-1]]):
            chosen.append(i)
    if not chosen:
        best = min(order, key=lambda i: times[i])
        raise _refusal(times[best], costs[best])
    facts = {
        **search_facts(bracket.problem, settings),
        "sampler": SUGGESTED_BY,
        "n_trials": len(known),
    }
    points = [found.point for found in fronts.measured(bracket.problem.predictor, studies)]
    return PlansWithinLimits(
        bracket.problem,
        bracket.loss_limits,
        trials=tuple(known[i][1] for i in chosen),
        studies=tuple(known[i][0] for i in chosen),
        front=fronts.pareto(points),
        facts=facts,
    )


def _refusal(times: float, cost: float, where: str = "") -> GuardrailError:
    return GuardrailError(
        f"No plan within the limit was found; got {times:.3g} times the limit {where}at a layer "
        f"average of {cost:.4f}. Raise the limit or --trials."
    )


def _shares(n_trials: int) -> list[int]:
    """Trials of each search: few to find the place, the rest there."""
    first = max(FEWEST_TRIALS, round(n_trials * (1 - LAST_SHARE) / (N_SEARCHES - 1)))
    shares = [first] * min(N_SEARCHES - 1, n_trials // first)
    rest = n_trials - sum(shares)
    return [*shares, rest] if rest else shares
