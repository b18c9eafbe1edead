"""The ledger of all searches: what a storage keeps of studies and trials, and under which names.

No other module knows how studies are named, which user attributes studies and trials carry, or
how a storage is opened. Names and attributes are a file format: journals of earlier versions
continue only while both stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tpcal.planner.search import ledger_rules as rules
from tpcal.planner.search.storage import open_storage
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_records import Condition, Cut
from tpcal.plans.record_reader import Reader

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
MEASURED, STOPPED, REPEAT = "measured", "stopped", "repeat"
"""Outcomes of a trial: measured on all samples, stopped early, or a repeat of an earlier plan."""

# User attributes of a trial, and of a study.
_CUTS, _OUTCOME, _LOSSES, _FLIPS = "cuts", "outcome", "measured", "flips"
_MARGINS, _SIZES = "margins", "sizes"
_OWNER, _BEAT, _SEED_PLACE = "owner", "beat", "seed_place"
_ELSEWHERE, _WHOLE_FRONT, _FINAL = "elsewhere", "whole front", "final-"

_BUDGET = re.compile("-budget(.+)-seed")
"""Finds the label of the budget in the name of a study."""


class SampleGroups(Protocol):
    """Samples by group, as a measurer or a profile has them."""

    @property
    def groups(self) -> Sequence[str]:
        """Names of the groups."""

    @property
    def sample_group(self) -> NDArray[Any] | Sequence[int]:
        """[n] index of each sample's group."""

    @property
    def fingerprint(self) -> str:
        """Hash of the samples with their answers; equal for equal samples of one draw."""


@dataclass(frozen=True)
class GroupMeans:
    """What a plan lost on a set of samples."""

    measured: Mapping[str, float]
    """Nats per group."""
    flips: Mapping[str, float]
    """Share of changed answers per group."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Half the width of the 95 % interval of the nats per group; empty if an earlier version of
    tpcal measured the plan."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of samples of each group; empty for a trial, whose samples the measurer has."""


@dataclass(frozen=True)
class TrialRecord:
    """One plan of a study."""

    cuts: tuple[Cut, ...]
    loss: float
    """The objective; an estimate if the trial was stopped."""
    measured: dict[str, float]
    flips: dict[str, float]
    outcome: str
    """``measured`` on all samples, ``stopped`` early, or ``repeat`` of an earlier plan."""


@dataclass(frozen=True)
class Ledger:
    """The searches of one profile in one storage.

    Losses compare only on the same samples, so the name of a study holds a digest of the profile
    and a digest of the samples that its plans are measured on.
    """

    storage: BaseStorage
    prefix: str
    """The beginning of the names of all studies of the profile."""
    own: str = ""
    """Fingerprint of the profile's samples."""

    @classmethod
    def open(cls, storage: Path | str | BaseStorage | None, profile: Profile) -> Ledger:
        """The searches of a profile.

        Args:
            storage: As `tpcal.planner.search.storage.open_storage`; None: memory.
            profile: What the searches plan from.

        Raises:
            UsageError: The file, database or proxy cannot be used.
        """
        prefix = f"tpcal-{profile.digest.removeprefix('sha256:')[:12]}-"
        return cls(open_storage(storage), prefix, profile.fingerprint)

    def start(
        self, samples: SampleGroups, budget: str, seed: int, space: Any, sampler: BaseSampler
    ) -> Study:
        """The study of one search, which is new or continues.

        Args:
            samples: The samples that plans are measured on.
            budget: Label of the budget.
            seed: Seed of the search.
            space: All else that tells two searches apart, as JSON has it.
            sampler: Suggests plans.

        Raises:
            UsageError: The storage holds a study of this name that no search of tpcal left.
        """
        name = f"{self._on(samples)}-budget{budget}-seed{seed}-{_digest(space)}"  # see _BUDGET
        study = open_study(self.storage, name, sampler)
        check(study, samples.groups, len(samples.sample_group))
        return study

    def load(self, name: str) -> Study:
        """The study of that name. Raises UsageError as `check`."""
        study = optuna.load_study(study_name=name, storage=self.storage)
        check(study)
        return study

    def studies(self, samples: SampleGroups | None = None) -> list[Study]:
        """All studies of the profile, or those on the given samples.

        Raises UsageError as `check`.
        """
        start = self.prefix if samples is None else self._on(samples)
        return [self.load(name) for name in self._names() if name.startswith(start)]

    def by_samples(self) -> list[list[Study]]:
        """All studies of the profile; each list holds those that share their samples."""
        found: dict[str, list[Study]] = {}
        for name in self._names():
            samples = name.removeprefix(self.prefix).partition("-")[0]
            found.setdefault(samples, []).append(self.load(name))
        return list(found.values())

    def all_on(self, samples: SampleGroups) -> bool:
        """Whether every study of the profile measured on these samples."""
        return all(name.startswith(self._on(samples)) for name in self._names())

    def measured_for_other_budgets(self, study: Study, samples: SampleGroups) -> list[FrozenTrial]:
        """Trials of other studies on these samples that were fully measured when this one began.

        Their number is kept in the study. Later trials are left out, so that a search that
        continues sees what it saw at first.
        """
        others = {other.study_name: other for other in self.studies(samples)}
        others.pop(study.study_name, None)
        counts = study.user_attrs.get(_ELSEWHERE)
        if counts is None:
            counts = {name: len(fully_measured(other)) for name, other in others.items()}
            study.set_user_attr(_ELSEWHERE, counts)
        return [
            trial
            for name, n in sorted(counts.items())
            if name in others
            for trial in sorted(fully_measured(others[name]), key=lambda t: t.number)[:n]
        ]

    def budgets_of_whole_front(self, engine: str | None = None) -> set[str]:
        """Labels of the budgets that searches of the whole front, for an engine or none, finished.

        Raises UsageError as `check`.
        """
        marked = [s for s in self.studies() if s.user_attrs.get(_WHOLE_FRONT) == (engine or True)]
        return {_BUDGET.findall(study.study_name)[0] for study in marked}

    def _names(self) -> list[str]:
        names = optuna.get_all_study_names(self.storage)
        return [name for name in names if name.startswith(self.prefix)]

    def _on(self, samples: SampleGroups) -> str:
        on: list[Any] = [list(samples.groups), np.asarray(samples.sample_group).tolist()]
        if samples.fingerprint != self.own:  # the prefix stands for the profile's own samples
            on.append(samples.fingerprint)
        return f"{self.prefix}{_digest(on)}"


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8]


def open_study(storage: BaseStorage, name: str, sampler: BaseSampler) -> Study:
    """The study of that name, which is created if there is none; nothing is printed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="minimize"
    )
    study.sampler = sampler
    return study


# What a study holds.


def finished(study: Study) -> list[FrozenTrial]:
    """The trials that have ended, whatever their outcome."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def fully_measured(study: Study) -> list[FrozenTrial]:
    """Trials measured on every sample, without repeats."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in trials if t.user_attrs.get(_OUTCOME) == MEASURED]


def nth_best(study: Study, n: int) -> FrozenTrial | None:
    """The trial of rank ``n``, from 1, among those measured on every sample; None if there are
    fewer. Of equal trials the older one comes first."""
    full = sorted(fully_measured(study), key=lambda t: (t.value, t.number))
    return full[n - 1] if len(full) >= n else None


def n_measured(study: Study) -> int:
    """Number of trials that ran the model."""
    return sum(t.user_attrs.get(_OUTCOME) != REPEAT for t in finished(study))


def n_started(study: Study, number: int) -> int:
    """Number of trials besides this one that have ended or that a process has begun to measure."""
    trials = study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING))
    return sum(t.state in FINISHED or _OWNER in t.user_attrs for t in trials if t.number != number)


def enqueue(study: Study, params: Mapping[str, Any], place: int | None = None) -> None:
    """Makes the next trial one of these parameters; ``place`` is that of a seed."""
    study.enqueue_trial(dict(params), None if place is None else {_SEED_PLACE: place})


def next_seed(study: Study, n_seeds: int) -> int | None:
    """The first seed that no trial has taken."""
    states = (*FINISHED, TrialState.WAITING, TrialState.RUNNING)
    trials = study.get_trials(deepcopy=False, states=states)
    taken = {t.user_attrs.get(_SEED_PLACE) for t in trials}
    return next((place for place in range(n_seeds) if place not in taken), None)


def has_waiting(study: Study) -> bool:
    """Whether a trial is queued already, as after a kill."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def mark_of_whole_front(study: Study, engine: str | None = None) -> None:
    """Notes that a search of the whole front, for an engine or for none, finished this study."""
    study.set_user_attr(_WHOLE_FRONT, engine or True)


def final(study: Study, trial: FrozenTrial, samples: SampleGroups, n: int) -> GroupMeans | None:
    """What a finalist lost on the first ``n`` further samples; None before it was measured."""
    kept = study.user_attrs.get(_name_of_final(trial, samples, n))
    return None if kept is None else GroupMeans(**kept)


def write_final(
    study: Study, trial: FrozenTrial, samples: SampleGroups, n: int, means: GroupMeans
) -> None:
    """Keeps what a finalist lost on the first ``n`` further samples."""
    study.set_user_attr(_name_of_final(trial, samples, n), asdict(means))


def _name_of_final(trial: FrozenTrial, samples: SampleGroups, n: int) -> str:
    return f"{_FINAL}{trial.number}-{n}-{_digest(samples.fingerprint)}"


# What a trial holds.


def write_cuts(trial: Trial, cuts: Iterable[Cut]) -> None:
    """Keeps the plan of a trial."""
    trial.set_user_attr(_CUTS, [asdict(cut) for cut in cuts])


def write_outcome(trial: Trial, outcome: str) -> None:
    """Keeps how a trial ended."""
    trial.set_user_attr(_OUTCOME, outcome)


def write_means(trial: Trial, means: GroupMeans) -> None:
    """Keeps what a trial lost on all samples."""
    trial.set_user_attr(_LOSSES, means.measured)
    trial.set_user_attr(_FLIPS, means.flips)
    trial.set_user_attr(_MARGINS, means.margins)
    write_outcome(trial, MEASURED)


def has_cuts(trial: FrozenTrial) -> bool:
    """Whether the plan of a trial is known yet."""
    return _CUTS in trial.user_attrs


def cuts_of(trial: FrozenTrial) -> tuple[Cut, ...]:
    """The plan of a trial."""
    return tuple(map(_cut, trial.user_attrs[_CUTS]))


def _cut(plain: dict[str, Any]) -> Cut:
    condition = plain["condition"]
    return Cut(**{**plain, "condition": Condition(**condition) if condition else None})


def means_of(trial: FrozenTrial) -> GroupMeans:
    """What a trial lost that was measured on all samples."""
    attrs = trial.user_attrs
    return GroupMeans(attrs[_LOSSES], attrs[_FLIPS], attrs.get(_MARGINS, {}))


def rank(trial: FrozenTrial) -> tuple[float, int, int]:
    """Order of fully measured trials: objective, then number of cuts, then age."""
    assert trial.value is not None
    return trial.value, len(trial.user_attrs[_CUTS]), trial.number


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """A finished trial as plain data."""
    assert trial.value is not None
    attrs = trial.user_attrs
    measured, flips = attrs.get(_LOSSES, {}), attrs.get(_FLIPS, {})
    return TrialRecord(cuts_of(trial), trial.value, measured, flips, attrs[_OUTCOME])


def queued_for(trial: FrozenTrial) -> Any:
    """The seed or the parameters that a trial was queued for; None if the sampler chose them."""
    seed = trial.user_attrs.get(_SEED_PLACE)
    return trial.system_attrs.get("fixed_params") if seed is None else seed


def write_owner(trial: Trial, owner: str) -> None:
    """Keeps which process measures a trial, as host:process."""
    trial.set_user_attr(_OWNER, owner)


def owner_of(trial: FrozenTrial) -> tuple[str, str]:
    """Host and process that measure a trial; both are empty if none has begun."""
    host, _, process = str(trial.user_attrs.get(_OWNER, "")).rpartition(":")
    return host, process


def write_beat(trial: Trial, n_beats: int) -> None:
    """Keeps a sign of life of the process that measures a trial."""
    trial.set_user_attr(_BEAT, n_beats)


def signs_of_life(trial: FrozenTrial) -> tuple[Any, ...]:
    """Changes whenever the process that measures a trial has shown that it lives."""
    return (*owner_of(trial), trial.user_attrs.get(_BEAT), len(trial.intermediate_values))


# What every study must hold.


def check(study: Study, groups: Iterable[str] | None = None, n_samples: int | None = None) -> None:
    """Raises UsageError, which names the first trial at fault, if no search left this study.

    A journal is a file that others may have written or damaged. Optuna checks only its own part.

    Args:
        study: From any storage.
        groups: Groups that losses must be of; None: any.
        n_samples: Number of samples that losses can be of; None: any.
    """
    reader = Reader()
    wanted = None if groups is None else set(groups)
    for name, value in study.user_attrs.items():
        if re.fullmatch(rf"{_FINAL}\d+-\d+(-[0-9a-f]+)?", name):
            rules.final(reader, value, (_LOSSES, _FLIPS), (_MARGINS, _SIZES), name)
        elif name == _ELSEWHERE:
            rules.counts(reader, value, name)
    for trial in study.get_trials(deepcopy=False):
        if not reader.problems:
            _check_trial(reader, trial, wanted, n_samples)
    if reader.problems:
        raise UsageError(
            f"storage must hold searches as tpcal plan keeps them; {reader.problems[0]} Delete "
            f"the study {study.study_name}, or the journal, to search again."
        )


def _check_trial(
    reader: Reader, trial: FrozenTrial, groups: set[str] | None, n_samples: int | None
) -> None:
    at, attrs = f"trial {trial.number}", trial.user_attrs
    rules.sample_losses(reader, trial.intermediate_values, n_samples or math.inf, at)
    if _OWNER in attrs:
        rules.owner(reader, attrs[_OWNER], f"{at}: {_OWNER}")
    place = attrs.get(_SEED_PLACE)
    if place is not None and type(place) is not int:
        reader.wrong(f"{at}: {_SEED_PLACE}", "be an integer", place)
    if _CUTS in attrs:
        rules.cuts(reader, attrs[_CUTS], at)
    if trial.state not in FINISHED:
        return
    if attrs.get(_OUTCOME) not in (MEASURED, STOPPED, REPEAT) or _CUTS not in attrs:
        reader.wrong(at, "have cuts and an outcome", attrs.get(_OUTCOME))
    rules.value(reader, trial.value, f"{at}: its value")
    if attrs.get(_OUTCOME) == MEASURED:
        rules.means(reader, attrs, (_LOSSES, _FLIPS), groups, at)
        rules.margins(reader, attrs.get(_MARGINS, {}), f"{at}: {_MARGINS}")
