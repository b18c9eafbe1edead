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
from tpcal.planner.search.bracketing import Hunt
from tpcal.planner.search.finals import again, sizes
from tpcal.planner.search.finished_plan import finished_plan
from tpcal.planner.search.front import Point
from tpcal.planner.search.ledger import (
    GroupMeans,
    Ledger,
    cuts_of,
    fully_measured,
    means_of,
    tried,
)
from tpcal.planner.search.loss_limits import Allowance
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.run import run
from tpcal.planner.search.sampler import SUGGESTED_BY
from tpcal.planner.search.settings import SearchSettings
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import GuardrailError
from tpcal.plans.schema import Cut, Plan

Cuts = tuple[Cut, ...]
N_SEARCHES = 5
LAST_SHARE = 1 / 3
"""Share of the trials for the last search; the ones before it only locate its budget."""
FEWEST_TRIALS = 6
N_HALVINGS = 10


def cheapest(
    problem: Problem,
    allowance: Allowance,
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
        >>> from tpcal.planner.search.loss_limits import Allowance
        >>> from tpcal.planner.search.within_a_loss import cheapest
        >>> problem = Problem.of(tpcal.load_profile("tpcal-out").profile)
        >>> cheapest(problem, Allowance(max_loss=100.0)).cost.layer_average_keep < 1
        True

    Args:
        problem: The profile and how many cuts the plan may have; its budget is not looked at.
        allowance: The limits.
        measurer: Runs the model; None: the cheapest plan by prediction.
        finals: Measures plans on other samples, where they have to be within as well: the
            cheapest of many measured plans owes some of that to the samples it was chosen by.
        settings: How the searches run; fewer trials are measured if that is enough to tell.

    Raises:
        UsageError: ``settings.storage`` cannot be used, or there is no limit.
        GuardrailError: No plan is within.
    """
    settings = settings or SearchSettings()
    if measurer is None or allowance.nothing:
        return _predicted(problem, allowance, settings)
    found = explore(problem, allowance, measurer=measurer, finals=finals, settings=settings)
    if finals is None:
        return found.plan(0)
    for place, trial in enumerate(found.trials):
        if settings.progress is not None:
            settings.progress(place, len(found.trials), "finalists")
        second = again(found.studies[place], trial, finals)
        times = allowance.times(second.measured, second.flips, sizes(finals))
        if times <= 1:
            return found.plan(place, second)
    raise _refusal(times, found.cost(-1), "on further samples ")


def explore(
    problem: Problem,
    allowance: Allowance,
    *,
    measurer: Measures,
    finals: Measures | None = None,
    settings: SearchSettings | None = None,
) -> Within:
    """The measured plans within the limits that no other beats; arguments as `cheapest`.

    Raises:
        UsageError: As `cheapest`.
        GuardrailError: No measured plan is within.
    """
    settings = settings or SearchSettings()
    allowance.check()
    hunt = Hunt(problem, allowance, sizes(measurer))
    ledger = Ledger.open(settings.storage, problem.profile)
    end, done = settings.end, 0
    for n in _shares(settings.n_trials):
        part, budget = settings.part(done, n, settings.n_trials, end), hunt.next()
        study = run(problem.at(budget), measurer, ledger, part)
        done += n
        best = _best(hunt, study, finals)
        if best is None or part.timeout == 0:
            break
        hunt.learn(budget, *best)
        if hunt.done:
            break
    return _within(hunt, ledger.studies(measurer), settings)


@dataclass(frozen=True)
class Within:
    """Measured plans within the limits, cheapest first; each loses more than the next one."""

    problem: Problem
    allowance: Allowance
    trials: tuple[FrozenTrial, ...]
    studies: tuple[Study, ...]
    """Of each trial."""
    front: tuple[Point, ...]
    """Of all that was measured on these samples."""
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
        beside = fronts.beside(self.front, self.cost(place))
        plan = finished_plan(
            self.problem.at(self.cost(place)),
            cuts_of(trial),
            {**self.facts, "study": study.study_name, "front": beside or None},
            means_of(trial) if means is None else means,
        )
        return limited(plan, self.allowance)

    def row(self, most: int) -> list[Plan]:
        """At most ``most`` of them, evenly spread, in the order of a proof: the dearest first."""
        last, n = len(self.trials) - 1, min(most, len(self.trials))
        places = [round(i * last / max(1, n - 1)) for i in range(n)]
        return [self.plan(place) for place in reversed(places)]


def limited(plan: Plan, allowance: Allowance) -> Plan:
    """The plan with its limits in place of a budget."""
    assert plan.loss is not None, "searches predict"
    most = allowance.max_loss, allowance.max_flips
    loss = replace(plan.loss, max_loss=most[0], max_flips=most[1])
    return replace(plan, budget=None, loss=loss)


def _predicted(problem: Problem, allowance: Allowance, settings: SearchSettings) -> Plan:
    """By prediction alone: the layer average is halved until the limit is met."""
    allowance.check()
    if allowance.nothing:
        return limited(search(problem.at(1.0), settings=settings).plan, allowance)
    hunt = Hunt(problem, allowance, sizes(problem.profile))
    found, most = None, 0.0
    for _ in range(N_HALVINGS):
        middle = round((hunt.low + hunt.high) / 2, 4)
        cuts = worst_group_optimum(problem.predictor, Budget(middle), problem.max_cuts)
        most = hunt.predicted(cuts)
        if most <= 1:
            found, hunt.high = middle, middle
        else:
            hunt.low = middle
    if found is None:
        raise _refusal(most, hunt.low, "by prediction ")
    return limited(search(problem.at(found), settings=settings).plan, allowance)


def _best(hunt: Hunt, study: Study, finals: Measures | None) -> tuple[Cuts, float] | None:
    """The plan of a search that loses least, and how many times the limit; on further samples
    too, as it would be the one to look good by chance."""
    trials = [(hunt.times(tried(trial)), trial.number, trial) for trial in fully_measured(study)]
    if not trials:
        return None
    times, _, best = min(trials, key=lambda each: each[:2])
    if finals is not None and times <= 1:
        second = again(study, best, finals)
        more = hunt.allowance.times(second.measured, second.flips, sizes(finals))
        times = max(times, more)
    return cuts_of(best), times


def _within(hunt: Hunt, studies: Sequence[Study], settings: SearchSettings) -> Within:
    known = [(study, trial) for study in studies for trial in fully_measured(study)]
    if not known:
        raise GuardrailError(
            "No plan within the limit was found, as none was measured in time. Raise --timeout."
        )
    times = [hunt.times(tried(trial)) for _, trial in known]
    costs = [hunt.cost(cuts_of(trial)) for _, trial in known]
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
        "seed": settings.seed,
        "command": settings.command,
        "sampler": SUGGESTED_BY,
        "weights": hunt.problem.weights,
        "n_trials": len(known),
    }
    points = [found.point for found in fronts.measured(hunt.problem.predictor, studies)]
    return Within(
        hunt.problem,
        hunt.allowance,
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
