"""Studies read back from a storage: what every trial must hold, checked once, when one is opened.

A journal is a file that others may have written or damaged; Optuna looks at its own part of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tpcal.plans.errors import UsageError
from tpcal.plans.plan_rules import Reader, read_cuts

OUTCOMES = ("measured", "stopped", "repeat")
_OWNER = re.compile(r".*:\d{1,9}")
_FINAL = re.compile(r"final-\d+")


def load(storage: BaseStorage, name: str) -> Study:
    """The study of that name, which `check` has nothing to say against."""
    study = optuna.load_study(study_name=name, storage=storage)
    check(study)
    return study


def check(study: Study, groups: Iterable[str] | None = None, n_samples: int | None = None) -> None:
    """Nothing, where all trials of a study are as a search of tpcal leaves them.

    Args:
        study: From any storage.
        groups: Those that losses must be of; None: any.
        n_samples: Samples that losses can be of; None: any number.

    Raises:
        UsageError: Names the first trial that is not.
    """
    reader = Reader()
    wanted = None if groups is None else set(groups)
    for name, value in study.user_attrs.items():
        if _FINAL.fullmatch(name):
            _check_losses(reader, value, None, name)
        elif name == "elsewhere" and not _is_counts(value):
            reader.wrong(name, "be a mapping to counts", value)
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
    for sample, loss in trial.intermediate_values.items():
        known = type(sample) is int and 0 <= sample < (n_samples or math.inf)
        if not known or type(loss) not in (int, float) or not 0 <= loss < math.inf:
            reader.wrong(f"{at}: the loss of sample {sample}", "be a number", loss)
    if "owner" in attrs and not _OWNER.fullmatch(str(attrs["owner"])):
        reader.wrong(f"{at}: owner", "be host:process", attrs["owner"])
    place = attrs.get("seed_place")
    if place is not None and type(place) is not int:
        reader.wrong(f"{at}: seed_place", "be an integer", place)
    if "cuts" in attrs:
        _check_cuts(reader, attrs["cuts"], at)
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return
    if attrs.get("outcome") not in OUTCOMES or "cuts" not in attrs:
        reader.wrong(at, "have cuts and an outcome", attrs.get("outcome"))
    value: Any = trial.value
    if type(value) not in (int, float) or not math.isfinite(value):
        reader.wrong(f"{at}: its value", "be a number", value)
    if attrs.get("outcome") == "measured":
        _check_losses(reader, attrs, groups, at)


def _check_cuts(reader: Reader, value: Any, at: str) -> None:
    mine = Reader()
    cuts = read_cuts(mine, value)
    layers, keeps = [cut.layer for cut in cuts], [cut.keep for cut in cuts]
    if layers != sorted(set(layers)) or keeps != sorted(keeps, reverse=True):
        mine.wrong("cuts", "stand on rising layers and keep ever fewer", value)
    for one in value if not mine.problems else ():
        if set(one) != {"layer", "keep", "selector", "params", "condition"}:
            mine.wrong("cuts", "have all their fields", sorted(one))
    reader.problems += [f"{at}: {problem}" for problem in mine.problems]


def _check_losses(reader: Reader, value: Any, groups: set[str] | None, at: str) -> None:
    """``measured`` and ``flips`` by group, of the same groups."""
    parts = [value.get(n) for n in ("measured", "flips")] if isinstance(value, Mapping) else []
    found = [part for part in parts if isinstance(part, Mapping)]
    names = [set(part) for part in found]
    same = len(found) == 2 and names[0] == names[1] == (groups or names[0])
    if not same or not names[0]:
        reader.wrong(at, "have losses and changed answers of every group", value)
        return
    for name, part in zip(("loss", "flips"), found, strict=True):
        for group, number in part.items():
            reader.number(number, f"{at}: {name} of {group}", name)


def _is_counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(type(n) is int and n >= 0 for n in value.values())
