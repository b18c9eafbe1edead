"""Chooses a plan for a budget: prediction first, then an Optuna study on the measured loss.

The loss is the worst group's mean KL(full || pruned). A study continues where it stopped, and the
same seed gives the same plan, interrupted or not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from tpcal.planner import front as fronts
from tpcal.planner.budget import Budget
from tpcal.planner.front import Point
from tpcal.planner.optimum import seeds, worst_group_optimum
from tpcal.planner.predict import Predictor
from tpcal.planner.report import finished_plan
from tpcal.planner.steps import fill, neighbours
from tpcal.planner.storage import open_storage, owner, release_abandoned
from tpcal.planner.study import (
    FINISHED,
    RepeatableTpe,
    WorstGroupPruner,
    enqueue,
    fully_measured,
    has_waiting,
    next_seed,
    open_study,
)
from tpcal.planner.suggest import Encoding, choices
from tpcal.planner.trials import Measures, Tried, cuts_of, measure, rank, tried
from tpcal.plans.errors import GuardrailError
from tpcal.plans.schema import Cut, Plan, load_preset, presets

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Result:
    """What a search found."""

    plan: Plan
    front: tuple[Point, ...]
    trials: tuple[Tried, ...] = ()
    study: str | None = None


@dataclass(frozen=True)
class _Search:
    predictor: Predictor
    budget: Budget
    encoding: Encoding
    measurer: Measures
    study: optuna.Study
    pruner: WorstGroupPruner
    seeds: tuple[dict[str, Any], ...]
    known: dict[str, FrozenTrial] = field(default_factory=dict)


def search(
    profile: Profile,
    budget: Budget | float,
    *,
    measurer: Measures | None = None,
    n_trials: int = 60,
    timeout: float | None = None,
    seed: int = 0,
    storage: Path | str | None = None,
    max_cuts: int = 4,
    max_loss: float | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """The plan that loses least within a budget, and the front it lies on.

    Args:
        profile: What calibration found.
        budget: What the plan may cost; a number is a layer average of keep in (0, 1], met to
            within one token.
        measurer: Runs the model; None: the plan is chosen by prediction alone, without Optuna.
        n_trials: Plans measured in all, those of earlier runs of the study among them. Suggestions
            that repeat a plan are not measured again and not counted, up to 4 per trial.
        timeout: Seconds after which no further trial starts.
        seed: Of the sampler.
        storage: Journal file or database URL that keeps the study; None: memory.
        max_cuts: Most cuts of a plan, drop-all among them.
        max_loss: Nats the worst group may lose.
        command: What the user typed, for the plan's provenance.
        progress: Told after every trial.

    Raises:
        UsageError: A bad ``budget``, or ``storage`` cannot be used.
        BudgetError: No plan is that cheap.
        GuardrailError: The best plan's worst group loses more than ``max_loss``.
    """
    predictor = Predictor(profile)
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    predictor.prices.check(budget)
    facts: dict[str, Any] = {"seed": seed, "command": command}
    if measurer is None or not fill(predictor, (), budget):
        cuts = worst_group_optimum(predictor, budget, max_cuts)
        points = [*fronts.predictions(predictor, max_cuts), fronts.point(predictor, cuts)]
        result = _finished(predictor, budget, cuts, facts | {"sampler": "prediction only"}, points)
    else:
        opened = open_storage(storage)
        run = _prepare(predictor, budget, measurer, opened, seed, max_cuts)
        _run(run, n_trials, timeout, progress)
        result = _conclude(run, facts, opened, max_cuts)
    _guard(result.plan, max_loss)
    return result


def _prepare(
    predictor: Predictor,
    budget: Budget,
    measurer: Measures,
    storage: BaseStorage,
    seed: int,
    max_cuts: int,
) -> _Search:
    n_layers = predictor.limits.n_layers
    published = [load_preset(name, n_layers).cuts for name in presets()]
    first = seeds(predictor, budget, max_cuts, [c for c in published if c])
    probed = [Cut(0, 0.5, o.selector, o.params) for o in predictor.options]
    known = choices([*probed, *(cut for cuts in (*first, *published) for cut in cuts)])
    encoding = Encoding(predictor.limits, known, max_cuts)
    first = [cuts for cuts in first if len(cuts) <= max_cuts]
    encoded = tuple(encoding.encode(cuts) for cuts in first)
    name = _study_name(predictor, budget, seed, encoding, measurer)
    study = open_study(storage, name, RepeatableTpe(seed))
    pruner = WorstGroupPruner(np.asarray(measurer.sample_group))
    study.pruner = pruner
    release_abandoned(study)
    run = _Search(predictor, budget, encoding, measurer, study, pruner, encoded)
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        run.known.setdefault(_key(trial.user_attrs["cuts"]), trial)
    return run


def _study_name(
    predictor: Predictor, budget: Budget, seed: int, encoding: Encoding, measurer: Measures
) -> str:
    space = [
        _family(predictor, measurer),
        sorted((k, repr(v)) for k, v in encoding.distributions.items()),
    ]
    digest = hashlib.sha256(json.dumps(space).encode()).hexdigest()[:8]
    return f"{_family(predictor, measurer)}-budget{budget.label}-seed{seed}-{digest}"


def _family(predictor: Predictor, measurer: Measures) -> str:
    """Shared by the studies whose losses compare: one profile, one set of samples."""
    samples = [list(measurer.groups), np.asarray(measurer.sample_group).tolist()]
    digest = hashlib.sha256(json.dumps(samples).encode()).hexdigest()[:8]
    return f"{fronts.prefix(predictor)}{digest}"


def _run(run: _Search, n_trials: int, timeout: float | None, progress: Progress | None) -> None:
    end = None if timeout is None else time.monotonic() + timeout
    for _ in range(5 * n_trials):
        done = _n_measured(run.study)
        if progress is not None:
            progress(min(done, n_trials), n_trials, "trials")
        finished = run.study.get_trials(deepcopy=False, states=FINISHED)
        if done >= n_trials or len(finished) >= 5 * n_trials:
            return
        if end is not None and time.monotonic() >= end:
            return
        _enqueue_next(run, len(finished))
        trial = run.study.ask()
        try:
            _try(run, trial)
        except BaseException:  # also Ctrl-C: the trial is done again when the search goes on
            run.study.tell(trial, state=TrialState.FAIL)
            raise


def _enqueue_next(run: _Search, n_finished: int) -> None:
    """Seeds first; then every other trial is the best plan's most promising neighbour.

    With some 15 parameters and 60 trials TPE finds regions rather than the last step; small steps
    from the best measured plan do that. Both see the other's results.
    """
    if has_waiting(run.study):
        return
    place = next_seed(run.study, len(run.seeds))
    if place is not None:
        enqueue(run.study, run.seeds[place], place)
        return
    full = fully_measured(run.study)
    if n_finished % 2 or not full:
        return
    predictor, max_cuts = run.predictor, run.encoding.max_cuts
    near = neighbours(predictor, cuts_of(min(full, key=rank)), run.budget, max_cuts)
    near.sort(key=predictor.score)
    for params in map(run.encoding.encode, near):
        cuts = fill(predictor, run.encoding.decode(params), run.budget)
        if _key([asdict(cut) for cut in cuts]) not in run.known:
            enqueue(run.study, params)
            return


def _n_measured(study: optuna.Study) -> int:
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sum(t.user_attrs.get("outcome") != "repeat" for t in trials)


def _try(run: _Search, trial: optuna.Trial) -> None:
    trial.set_user_attr("owner", owner())
    cuts = fill(run.predictor, run.encoding.suggest(trial), run.budget)
    plain = [asdict(cut) for cut in cuts]
    trial.set_user_attr("cuts", plain)
    key = _key(plain)
    earlier = run.known.get(key)
    if earlier is not None and earlier.value is not None:
        trial.set_user_attr("outcome", "repeat")
        # A hair worse, so that the repeat, which has no samples, never counts as the best trial.
        run.study.tell(trial, float(np.nextafter(earlier.value, np.inf)))
        return
    value = measure(trial, run.measurer, cuts, run.pruner)
    run.known[key] = run.study.tell(trial, value)


def _conclude(run: _Search, facts: dict[str, Any], storage: BaseStorage, max_cuts: int) -> Result:
    trials = run.study.get_trials(deepcopy=False, states=FINISHED)
    full = fully_measured(run.study)
    sampler = "TPESampler (multivariate)"
    facts = facts | {"sampler": sampler, "study": run.study.study_name, "n_trials": len(full)}
    family = _family(run.predictor, run.measurer)
    names = [n for n in optuna.get_all_study_names(storage) if n.startswith(family)]
    points = [p for name in names for p in fronts.measured(run.predictor, storage, name)]
    measured: dict[str, Any] = {}
    if full:
        best = min(full, key=rank)
        cuts = cuts_of(best)
        measured = {"measured": best.user_attrs["measured"], "flips": best.user_attrs["flips"]}
    else:  # no time, no trials
        cuts = worst_group_optimum(run.predictor, run.budget, max_cuts)
    result = _finished(run.predictor, run.budget, cuts, facts, points, **measured)
    return replace(result, trials=tuple(map(tried, trials)), study=run.study.study_name)


def _finished(
    predictor: Predictor,
    budget: Budget,
    cuts: tuple[Cut, ...],
    facts: dict[str, Any],
    points: Sequence[Point],
    **measured: Any,
) -> Result:
    front = fronts.pareto(points)
    beside = fronts.beside(front, fronts.average(predictor, cuts))
    plan = finished_plan(predictor, budget, cuts, facts | {"front": beside or None}, **measured)
    return Result(plan, front)


def _key(cuts: Sequence[dict[str, Any]]) -> str:
    return json.dumps(cuts, sort_keys=True)


def _guard(plan: Plan, max_loss: float | None) -> None:
    if max_loss is None or plan.loss is None:
        return
    kind = "measured" if plan.loss.measured else "predicted"
    losses = plan.loss.measured or plan.loss.predicted
    group = max(losses, key=lambda g: losses[g], default=None)
    if group is not None and not losses[group] <= max_loss:
        raise GuardrailError(
            f"The worst group must lose at most {max_loss:g} nats; got {losses[group]:.4g} "
            f"({kind}) on {group}. Ask for a larger budget, or allow more loss."
        )
