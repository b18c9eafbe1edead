"""Hints that print the next commands to run, complete with the options that they need."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from tpcal import terminal
from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED

if TYPE_CHECKING:
    from pathlib import Path

    from tpcal.calibrate.profile import Profile
    from tpcal.planner.search.front import Point
    from tpcal.plans.plan_records import Plan

BUDGET = 0.22
"""Layer average of the suggested first plan, if plans can be that cheap."""
MODEL = ("device", "dtype", "offload", "trust_remote_code")
SEARCH = (
    *("given", "folder", "data", "storage", "weights", "objective", "seed", "max_cuts", "engine"),
    *("name", "revision"),
)


def after_calibrate(profile: Profile, folder: Path, is_default: bool) -> None:
    """Prints the commands that plan from a profile and show it.

    Args:
        profile: Profile that was measured.
        folder: Folder of the profile.
        is_default: Whether `tpcal plan` finds the profile without --profile.
    """
    where = [] if is_default else ["--profile", str(folder)]
    budget = _reachable(profile)
    plan = ["plan", *where, "--budget", f"{budget:g}", *_of_model()] if budget else None
    _print(*([plan] if plan else []), ["show", str(folder)])


def after_plan(plan: Plan, file: Path) -> None:
    """Prints the command that evaluates a plan."""
    from tpcal.calibrate.inputs.samples import SCENES

    data, model = plan.provenance.get("data") or {}, plan.model and plan.model.name
    # Other models than the built-in one need --data to use the built-in questions.
    own = ["--data", SCENES] if data.get("data") == EMBEDDED and model not in BUILT_IN else []
    _print(["eval", "--plan", str(file), *own, *_of_model()])


def after_front(points: Sequence[Point]) -> None:
    """Prints the command that makes a plan from a front that was just searched."""
    cheaper = [p.layer_average_keep for p in points if 0.05 < p.layer_average_keep <= 0.25]
    budget = f"{math.ceil(100 * max(cheaper, default=BUDGET)) / 100:g}"
    search = typed(*SEARCH, *MODEL)
    if any("://" in word for word in search):  # the URL of a database may hold a password
        terminal.console().print(f"\nAdd --budget {budget} to this command for a plan.")
    else:
        _print(["plan", "--budget", budget, *search])


def after_convert(file: Path) -> None:
    """Prints the command that checks a converted plan."""
    _print(["check", str(file)])
    terminal.console().print("Add --model with the name of your model to see whether it fits.")


def _print(*commands: Sequence[str]) -> None:
    lines = [shlex.join(["tpcal", *words]) for words in commands]
    text = "\n      ".join(lines)
    terminal.console().print(f"\nNext: {text}", soft_wrap=True)  # a break would split it


def _reachable(profile: Profile) -> float | None:
    """A budget that plans of the profile can meet; None if no probe leaves tokens."""
    from tpcal.planner.prediction.predict import Predictor

    try:
        least = Predictor(profile).limits.least
    except UsageError:
        return None
    return max(BUDGET, math.ceil(100 * least) / 100)


def _of_model() -> list[str]:
    """The model options of the current command; the plan or profile names the model itself.

    With --trust-remote-code the name is included, because such a model must be named.
    """
    trusted = click.get_current_context().params.get("trust_remote_code")
    return typed(*MODEL, *(("name", "revision") if trusted else ()))


def typed(*names: str) -> list[str]:
    """The options of these names that were typed, with their values."""
    ctx = click.get_current_context()
    words: list[str] = []
    for option in ctx.command.params:
        name = str(option.name)
        if name not in names or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        flag, value = option.opts[0], ctx.params[name]
        if isinstance(option, click.Argument):
            words.append(str(value))
        elif isinstance(value, Mapping):
            words += [part for key, n in value.items() for part in (flag, f"{key}={n:g}")]
        else:
            words += [flag] if getattr(option, "is_flag", False) else [flag, str(value)]
    return words
