"""The cheapest plan that loses no more than is allowed: searches at a few budgets, up or down.

Each of them is a study like that of any other budget. So an interrupted run continues, budgets
that were searched before cost nothing, and what is measured here serves later searches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.prediction.predict import Predictor
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
from tpcal.planner.search.one_budget import N_TRIALS, Result, search
from tpcal.planner.search.trials import Measures
from tpcal.plans.errors import GuardrailError
from tpcal.plans.schema import Cut, Plan

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

Progress = Callable[[int, int, str], None]
Cuts = tuple[Cut, ...]
N_SEARCHES = 5
LAST_SHARE = 1 / 3
"""Of the trials, for the last search: the others only have to find out where it should be."""
FEWEST_TRIALS = 6
N_HALVINGS = 10


def cheapest(
    profile: Profile,
    allowance: Allowance,
    *,
    measurer: Measures | None = None,
    finals: Measures | None = None,
    n_trials: int = N_TRIALS,
    timeout: float | None = None,
    seed: int = 0,
    storage: Path | str | BaseStorage | None = None,
    max_cuts: int = 4,
    weights: Mapping[str, float] | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan with the smallest layer average of all measured ones that are within the limits.

    Where a limit is 0, that is the unpruned model.

    Args:
        profile: What calibration found.
        allowance: The limits.
        measurer: As `search`; None: the cheapest plan by prediction.
        finals: Measures plans on other samples, where they have to be within as well: the
            cheapest of many measured plans owes some of that to the samples it was chosen by.
        n_trials: Plans measured in all; fewer where that is enough to tell.
        timeout: Seconds after which no further trial starts.
        seed: As `search`, like the arguments not named here.

    Raises:
        UsageError: As `search`, or no limit.
        GuardrailError: No plan is within.
    """
    options: dict[str, Any] = {
        "seed": seed,
        "max_cuts": max_cuts,
        "weights": weights,
        "command": command,
    }
    if measurer is None or allowance.nothing:
        return _predicted(profile, allowance, options)
    options |= {"n_trials": n_trials, "timeout": timeout, "storage": storage}
    options |= {"progress": progress, "finals": finals}
    found = explore(profile, allowance, measurer=measurer, **options)
    if finals is None:
        return found.plan(0)
    for place, trial in enumerate(found.trials):
        if progress is not None:
            progress(place, len(found.trials), "finalists")
        second = again(found.studies[place], trial, finals)
        times = allowance.times(second.measured, second.flips, sizes(finals))
        if times <= 1:
            return found.plan(place, second)
    raise _refusal(times, found.cost(-1), "on further samples ")


def explore(
    profile: Profile,
    allowance: Allowance,
    *,
    measurer: Measures,
    finals: Measures | None = None,
    n_trials: int = N_TRIALS,
    timeout: float | None = None,
    storage: Path | str | BaseStorage | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Within:
    """The measured plans within the limits that no other beats; arguments as `cheapest`.

    Raises:
        UsageError: As `search`, or no limit.
        GuardrailError: No measured plan is within.
    """
    allowance.check()
    predictor = Predictor(profile, Objective(options.get("weights") or {}))
    hunt = Hunt(predictor, allowance, sizes(measurer), options.get("max_cuts", 4))
    ledger = Ledger.open(storage, profile)
    end = None if timeout is None else time.monotonic() + timeout
    done = 0
    for n in _shares(n_trials):
        left = None if end is None else max(0.0, end - time.monotonic())
        told = progress and _after(done, n_trials, progress)
        budget, options["progress"] = hunt.next(), told
        last = search(
            profile,
            budget,
            measurer=measurer,
            n_trials=n,
            timeout=left,
            storage=ledger.storage,
            **options,
        )
        done += n
        best = _best(hunt, last, ledger, finals)
        if best is None or left == 0:
            break
        hunt.learn(budget, *best)
        if hunt.done:
            break
    return _within(hunt, last, ledger.studies(measurer))


@dataclass(frozen=True)
class Within:
    """Measured plans within the limits, cheapest first; each loses more than the next one."""

    predictor: Predictor
    allowance: Allowance
    trials: tuple[FrozenTrial, ...]
    studies: tuple[Study, ...]
    """Of each trial."""
    front: tuple[Point, ...]
    """Of all that was measured on these samples."""
    facts: Mapping[str, Any]

    def cost(self, place: int) -> float:
        """Layer average of keep."""
        return fronts.average(self.predictor, cuts_of(self.trials[place]))

    def plan(self, place: int, means: GroupMeans | None = None) -> Plan:
        """One of them.

        Args:
            place: Its place among the trials.
            means: What it lost; None: what was measured in its trial.
        """
        trial, study = self.trials[place], self.studies[place]
        beside = fronts.beside(self.front, self.cost(place))
        plan = finished_plan(
            self.predictor,
            Budget(self.cost(place)),
            cuts_of(trial),
            {**self.facts, "study": study.study_name, "front": beside or None},
            means_of(trial) if means is None else means,
        )
        return limited(plan, self.allowance)

    def row(self, most: int) -> list[Plan]:
        """At most that many of them, evenly spread, the dearest first: the order of a proof."""
        last, n = len(self.trials) - 1, min(most, len(self.trials))
        places = [round(i * last / max(1, n - 1)) for i in range(n)]
        return [self.plan(place) for place in reversed(places)]


def limited(plan: Plan, allowance: Allowance) -> Plan:
    """The plan with its limits in place of a budget."""
    assert plan.loss is not None, "searches predict"
    most = allowance.max_loss, allowance.max_flips
    loss = replace(plan.loss, max_loss=most[0], max_flips=most[1])
    return replace(plan, budget=None, loss=loss)


def _predicted(profile: Profile, allowance: Allowance, options: Mapping[str, Any]) -> Plan:
    """By prediction alone: the layer average is halved until the limit is met."""
    allowance.check()
    if allowance.nothing:
        return limited(search(profile, 1.0, **options).plan, allowance)
    predictor = Predictor(profile, Objective(options["weights"] or {}))
    hunt = Hunt(predictor, allowance, sizes(profile), options["max_cuts"])
    found, most = None, 0.0
    for _ in range(N_HALVINGS):
        middle = round((hunt.low + hunt.high) / 2, 4)
        cuts = worst_group_optimum(predictor, Budget(middle), options["max_cuts"])
        most = hunt.predicted(cuts)
        if most <= 1:
            found, hunt.high = middle, middle
        else:
            hunt.low = middle
    if found is None:
        raise _refusal(most, hunt.low, "by prediction ")
    return limited(search(profile, found, **options).plan, allowance)


def _best(
    hunt: Hunt, found: Result, ledger: Ledger, finals: Measures | None
) -> tuple[Cuts, float] | None:
    """The plan of a search that loses least, and how many times the limit; on further samples
    too, as it would be the one to look good by chance."""
    assert found.study is not None, "a measurer was given"
    study = ledger.load(found.study)
    trials = [(hunt.times(tried(trial)), trial.number, trial) for trial in fully_measured(study)]
    if not trials:
        return None
    times, _, best = min(trials, key=lambda each: each[:2])
    if finals is not None and times <= 1:
        second = again(study, best, finals)
        more = hunt.allowance.times(second.measured, second.flips, sizes(finals))
        times = max(times, more)
    return cuts_of(best), times


def _within(hunt: Hunt, last: Result, studies: list[Study]) -> Within:
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
    provenance = last.plan.provenance
    facts = {name: provenance.get(name) for name in ("seed", "command", "sampler", "weights")}
    points = [found.point for found in fronts.measured(hunt.predictor, studies)]
    return Within(
        hunt.predictor,
        hunt.allowance,
        trials=tuple(known[i][1] for i in chosen),
        studies=tuple(known[i][0] for i in chosen),
        front=fronts.pareto(points),
        facts={**facts, "n_trials": len(known)},
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


def _after(done: int, total: int, progress: Progress) -> Progress:
    return lambda more, of, what: progress(done + more, total, what)
