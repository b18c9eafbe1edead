"""The loop of a search: which plan to measure next, and measuring it."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from tpcal.planner.prediction.budget import Budget
from tpcal.planner.prediction.neighbours import fill
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.optimum import seeds
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.search import front as fronts
from tpcal.planner.search.correction import Cuts
from tpcal.planner.search.encoding import Encoding, canonical, choices
from tpcal.planner.search.other_processes import Others, give_up, measuring
from tpcal.planner.search.proposals import proposals
from tpcal.planner.search.study import (
    FINISHED,
    BestPruner,
    Repeatable,
    enqueue,
    fully_measured,
    has_waiting,
    next_seed,
    open_study,
)
from tpcal.planner.search.study_rules import check, load
from tpcal.planner.search.trials import Measures, cuts_of, measure
from tpcal.plans.plan_file import load_preset, presets
from tpcal.plans.schema import Cut

Progress = Callable[[int, int, str], None]
MOST_MOVED = 6
TIME_IS_UP = (
    "The search stopped because the time of --timeout was over, not because all trials were done. "
    "The same command continues it."
)
SAMPLED_EVERY = 4
"""Of so many trials after the seeds the sampler suggests one; the others are proposals."""


@dataclass(frozen=True)
class Loop:
    """One search: a study and all it needs to go on.

    Seeds come first: the optimum of the prediction and its neighbours, the best plans of other
    budgets, published schedules. Then proposals take turns with the sampler: steps from the best
    measured plans, ranked by the corrected prediction, improve most often (docs/planner.md); the
    sampler looks where they do not. Both see the other's results.
    """

    predictor: Predictor
    budget: Budget
    encoding: Encoding
    measurer: Measures
    study: optuna.Study
    pruner: BestPruner
    seed: int
    seeds: tuple[dict[str, Any], ...] = ()
    """Empty in a search by the sampler alone."""
    elsewhere: dict[Cuts, float] = field(default_factory=dict)
    """Objective of plans that searches for other budgets measured on the same samples."""
    known: dict[Cuts, FrozenTrial] = field(default_factory=dict)

    def run(self, n_trials: int, timeout: float | None, progress: Progress | None) -> None:
        """Measures plans until there are ``n_trials``; warns if time is up before that."""
        end = None if timeout is None else time.monotonic() + timeout
        others = Others(self.study)
        while True:
            busy = others.at_work()
            finished = self.study.get_trials(deepcopy=False, states=FINISHED)
            self._learn([*finished, *busy])
            done = n_measured(self.study)
            if progress is not None:
                progress(min(done, n_trials), n_trials, "trials")
            if done >= n_trials or len(finished) >= 5 * n_trials:
                return
            if end is not None and time.monotonic() >= end:
                warnings.warn(TIME_IS_UP, stacklevel=2)
                return
            if done + len(busy) >= n_trials:  # others measure the last ones, or leave them to us
                others.wait()
                continue
            self._enqueue_next(len(finished))
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
            if "cuts" in trial.user_attrs:
                self.known.setdefault(cuts_of(trial), trial)

    def _enqueue_next(self, n_finished: int) -> None:
        if not self.seeds or has_waiting(self.study):
            return
        place = next_seed(self.study, len(self.seeds))
        if place is not None:
            enqueue(self.study, self.seeds[place], place)
        elif n_finished % SAMPLED_EVERY and fully_measured(self.study):
            new = self._proposal(n_finished)
            if new is not None:
                enqueue(self.study, new)

    def _proposal(self, n_finished: int) -> dict[str, Any] | None:
        own = {cuts: t.value for cuts, t in self.known.items() if t.value is not None}
        ranked = proposals(
            *(self.predictor, {**self.elsewhere, **own}, self.known),
            *(self.budget, self.encoding.max_cuts, np.random.default_rng([self.seed, n_finished])),
        )
        for params in map(self.encoding.encode, ranked):
            if self._filled(self.encoding.decode(params)) not in self.known:
                return params
        return None

    def _filled(self, cuts: Cuts) -> Cuts:
        return tuple(map(canonical, fill(self.predictor, cuts, self.budget)))

    def _try(self, trial: optuna.Trial) -> None:
        cuts = self._filled(self.encoding.suggest(trial))
        trial.set_user_attr("cuts", [asdict(cut) for cut in cuts])
        earlier = self.known.get(cuts)
        if earlier is not None and earlier.value is not None:
            trial.set_user_attr("outcome", "repeat")
            # A hair worse, so that the repeat, which has no samples, never counts as the best.
            self.study.tell(trial, float(np.nextafter(earlier.value, np.inf)))
            return
        value = measure(trial, self.measurer, cuts, self.pruner, self.predictor.objective)
        self.study.tell(trial, value)


def prepare(
    predictor: Predictor,
    budget: Budget,
    measurer: Measures,
    storage: BaseStorage,
    *,
    seed: int,
    max_cuts: int,
    sampler: str,
    propose: bool,
) -> Loop:
    """The search, new or continued; arguments as `tpcal.planner.search.one_budget.search`."""
    published = [load_preset(name, predictor.limits.n_layers).cuts for name in presets()]
    first = seeds(predictor, budget, max_cuts, [cuts for cuts in published if cuts])
    probed = [Cut(0, 0.5, o.selector, o.params) for o in predictor.options]
    known = choices([*probed, *(cut for cuts in (*first, *published) for cut in cuts)])
    encoding = Encoding(predictor.limits, known, max_cuts, predictor.profile)
    name = _name(predictor, budget, seed, encoding, measurer, f"{sampler} {propose}")
    study = open_study(storage, name, Repeatable(sampler, seed))
    groups = np.asarray(measurer.sample_group)
    check(study, measurer.groups, len(groups))
    pruner = BestPruner(groups, measurer.groups, predictor.objective)
    study.pruner = pruner
    if not propose:
        return Loop(predictor, budget, encoding, measurer, study, pruner, seed)
    elsewhere = _elsewhere(study, storage, family(predictor, measurer), predictor)
    first = [first[0], *_moved(predictor, budget, elsewhere), *first[1:]]
    fitting = [cuts for cuts in dict.fromkeys(first) if len(cuts) <= max_cuts]
    encoded = tuple(map(encoding.encode, fitting))
    return Loop(predictor, budget, encoding, measurer, study, pruner, seed, encoded, elsewhere)


def n_measured(study: optuna.Study) -> int:
    """Trials that ran the model."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(t.user_attrs.get("outcome") != "repeat" for t in trials)


def family(predictor: Predictor, measurer: Measures) -> str:
    """How the names of studies begin whose losses compare: one profile, one set of samples."""
    samples = [list(measurer.groups), np.asarray(measurer.sample_group).tolist()]
    return f"{fronts.prefix(predictor)}{_digest(samples)}"


def _name(
    predictor: Predictor,
    budget: Budget,
    seed: int,
    encoding: Encoding,
    measurer: Measures,
    how: str,
) -> str:
    space = sorted((k, repr(v)) for k, v in encoding.distributions.items())
    digest = _digest([space, how, sorted(predictor.objective.weights.items())])
    return f"{family(predictor, measurer)}-budget{budget.label}-seed{seed}-{digest}"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8]


def _elsewhere(
    study: optuna.Study, storage: BaseStorage, start: str, predictor: Predictor
) -> dict[Cuts, float]:
    """Objective of what other studies had measured when this one began.

    Later results are left out, so that a search that is continued sees what it saw at first.
    """
    counts = study.user_attrs.get("elsewhere")
    names = [n for n in optuna.get_all_study_names(storage) if n.startswith(start)]
    others = {name: load(storage, name) for name in names}
    others.pop(study.study_name, None)
    if counts is None:
        counts = {name: len(fully_measured(other)) for name, other in others.items()}
        study.set_user_attr("elsewhere", counts)
    objective: Objective = predictor.objective
    return {
        cuts_of(trial): objective.of(trial.user_attrs["measured"])
        for name, n in sorted(counts.items())
        if name in others
        for trial in sorted(fully_measured(others[name]), key=lambda t: t.number)[:n]
    }


def _moved(predictor: Predictor, budget: Budget, elsewhere: Mapping[Cuts, float]) -> list[Cuts]:
    """The best plans of nearby budgets, put on this one."""
    wanted = predictor.prices.average(budget)
    front = fronts.pareto(
        fronts.Point(fronts.average(predictor, cuts), value, cuts, measured=True)
        for cuts, value in elsewhere.items()
    )
    near = sorted(front, key=lambda point: abs(point.layer_average_keep - wanted))
    plans = [fill(predictor, point.cuts, budget) for point in near if point.cuts]
    return list(dict.fromkeys(plans))[:MOST_MOVED]
