"""One search: it chooses the next plan, measures it, and repeats until the trials are done."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.optimum import seeds
from tpcal.planner.problem import Problem
from tpcal.planner.search import front as fronts
from tpcal.planner.search.encoding import Encoding, canonical, choices
from tpcal.planner.search.ledger import (
    REPEAT,
    Ledger,
    cuts_of,
    enqueue,
    finished,
    fully_measured,
    has_cuts,
    has_waiting,
    means_of,
    n_measured,
    next_seed,
    write_cuts,
    write_outcome,
)
from tpcal.planner.search.other_processes import OtherProcesses, give_up, measuring
from tpcal.planner.search.proposals import proposals
from tpcal.planner.search.pruning import BestPruner
from tpcal.planner.search.sampler import RepeatableTPE
from tpcal.planner.search.settings import SearchSettings
from tpcal.planner.search.trials import Measures, measure
from tpcal.plans.plan_file import load_preset, presets
from tpcal.plans.plan_records import Condition, Cut, Cuts

MOST_MOVED = 6
TIME_IS_UP = (
    "The search stopped because the time of --timeout was over, not because all trials were done. "
    "The same command continues it."
)
CONDITIONAL = Cut(1, 0.0, condition=Condition(0.5))
"""Any conditional cut."""
SAMPLED_EVERY = 4
"""After the seeds, the sampler suggests one trial of this many; the others are proposals."""


@dataclass(frozen=True)
class Search:
    """One search: a study and all it needs to go on.

    Seeds come first: the optimum of the prediction and its neighbours, the best plans of other
    budgets, published schedules. Then proposals take turns with the sampler. A proposal is a step
    from one of the best measured plans; the sampler looks where no step leads. Both see the
    other's results.
    """

    problem: Problem
    settings: SearchSettings
    encoding: Encoding
    measurer: Measures
    study: Study
    pruner: BestPruner
    seeds: tuple[dict[str, Any], ...]
    known: dict[Cuts, FrozenTrial] = field(default_factory=dict)

    def run(self) -> None:
        """Measures plans until there are ``n_trials``; warns if time is up before that."""
        n_trials, progress, end = self.settings.n_trials, self.settings.progress, self.settings.end
        others = OtherProcesses(self.study)
        while True:
            busy = others.at_work()
            ended = finished(self.study)
            self._learn([*ended, *busy])
            done = n_measured(self.study)
            if progress is not None:
                progress(min(done, n_trials), n_trials, "trials")
            if done >= n_trials or len(ended) >= 5 * n_trials:
                return
            if end is not None and time.monotonic() >= end:
                warnings.warn(TIME_IS_UP, stacklevel=2)
                return
            if done + len(busy) >= n_trials:  # others measure the last ones, or leave them to us
                others.wait()
                continue
            self._enqueue_next(len(ended))
            trial = self.study.ask()
            enough = others.n_before(trial) + n_measured(self.study) >= n_trials
            if enough or others.have(trial):
                give_up(self.study, trial.number)
                continue
            try:
                with measuring(trial):
                    self._try(trial)
            except UpdateFinishedTrialError:
                continue  # another process took us for dead, and tries the plan again
            except BaseException:  # also Ctrl-C: the trial is done again when the search goes on
                give_up(self.study, trial.number)
                raise

    def _learn(self, trials: Iterable[FrozenTrial]) -> None:
        """Makes known what this and other processes have measured or are measuring."""
        self.known.clear()
        for trial in trials:
            if has_cuts(trial):
                self.known.setdefault(cuts_of(trial), trial)

    def _enqueue_next(self, n_finished: int) -> None:
        if has_waiting(self.study):
            return
        place = next_seed(self.study, len(self.seeds))
        if place is not None:
            enqueue(self.study, self.seeds[place], place)
        elif n_finished % SAMPLED_EVERY and fully_measured(self.study):
            new = self._proposal()
            if new is not None:
                enqueue(self.study, new)

    def _proposal(self) -> dict[str, Any] | None:
        measured = {cuts: t.value for cuts, t in self.known.items() if t.value is not None}
        ranked = proposals(self.problem, measured, self.known)
        for params in map(self.encoding.encode, ranked):
            if self._filled(self.encoding.decode(params)) not in self.known:
                return params
        return None

    def _filled(self, cuts: Cuts) -> Cuts:
        return tuple(map(canonical, fill(self.problem.predictor, cuts, self.problem.budget)))

    def _try(self, trial: Trial) -> None:
        cuts = self._filled(self.encoding.suggest(trial))
        write_cuts(trial, cuts)
        earlier = self.known.get(cuts)
        if earlier is not None and earlier.value is not None:
            write_outcome(trial, REPEAT)
            # A hair worse, so that the repeat, which has no samples, never counts as the best.
            self.study.tell(trial, float(np.nextafter(earlier.value, np.inf)))
            return
        value = measure(trial, self.measurer, cuts, self.pruner, self.problem.objective)
        self.study.tell(trial, value)


def run(problem: Problem, measurer: Measures, ledger: Ledger, settings: SearchSettings) -> Study:
    """The study of one search, new or continued, after its trials were measured.

    Args:
        problem: What is searched for.
        measurer: Runs the model.
        ledger: Keeps the study; ``settings.storage`` is not looked at.
        settings: How the search runs.

    Raises:
        BudgetError: No plan is that cheap.
        UsageError: The storage holds another study of the same name.
    """
    search = _prepare(problem, measurer, ledger, settings)
    search.run()
    return search.study


def _prepare(
    problem: Problem, measurer: Measures, ledger: Ledger, settings: SearchSettings
) -> Search:
    predictor, budget = problem.predictor, problem.budget
    published = [load_preset(name, predictor.limits.n_layers).cuts for name in presets()]
    first = seeds(predictor, budget, [cuts for cuts in published if cuts])
    probed = [Cut(0, 0.5, o.selector, o.params) for o in predictor.options]
    known = choices(
        cut
        for cut in [*probed, *(cut for cuts in (*first, *published) for cut in cuts)]
        if predictor.runs(cut)
    )
    conditions = predictor.profile if predictor.runs(CONDITIONAL) else None
    encoding = Encoding(predictor.limits, known, conditions)
    sampler = RepeatableTPE(settings.seed)
    space = _space(problem, encoding)
    study = ledger.start(measurer, budget.label, settings.seed, space, sampler)
    groups = np.asarray(measurer.sample_group)
    pruner = BestPruner(groups, measurer.groups, problem.objective)
    study.pruner = pruner
    for_other_budgets = {
        cuts_of(trial): problem.objective.of(means_of(trial).measured)
        for trial in ledger.measured_for_other_budgets(study, measurer)
    }
    first = [first[0], *_moved(problem, for_other_budgets), *first[1:]]
    fitting = [cuts for cuts in dict.fromkeys(first) if len(cuts) <= problem.max_cuts]
    encoded = tuple(map(encoding.encode, fitting))
    return Search(problem, settings, encoding, measurer, study, pruner, encoded)


def _space(problem: Problem, encoding: Encoding) -> list[Any]:
    """What else than samples, budget and seed tells two searches apart."""
    distributions = sorted((k, repr(v)) for k, v in encoding.distributions.items())
    engine = [problem.engine.name] if problem.engine else []
    objective = problem.objective
    weights = sorted(objective.weights.items())
    space = [distributions, f"worst group {objective.worst_share}", weights, *engine]
    if problem.budget.kind != "ms":
        return space
    # Machines that share a storage have times of their own, so a plan within a budget in ms on
    # one of them may exceed it on another. The times are rounded as in the profile's file.
    by_tokens, by_part = problem.profile.layer_ms, problem.profile.executor_ms.items()
    return [*space, *(sorted((key, round(ms, 6)) for key, ms in t) for t in (by_tokens, by_part))]


def _moved(problem: Problem, for_other_budgets: Mapping[Cuts, float]) -> list[Cuts]:
    """The best plans of nearby budgets, put on this one."""
    predictor, budget = problem.predictor, problem.budget
    wanted = predictor.prices.average(budget)
    front = fronts.pareto(
        fronts.Point(fronts.average(predictor, cuts), value, cuts, measured=True)
        for cuts, value in for_other_budgets.items()
    )
    near = sorted(front, key=lambda point: abs(point.layer_average_keep - wanted))
    plans = [fill(predictor, point.cuts, budget) for point in near if point.cuts]
    return list(dict.fromkeys(plans))[:MOST_MOVED]
