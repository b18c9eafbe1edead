"""What commands read: plans, profiles, models and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal import terminal
from tpcal.commands.outputs import check_place
from tpcal.options import DataChoice, ModelChoice
from tpcal.planner.named import is_preset, off_budget, read_plan
from tpcal.plans.errors import FitError, UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.models import Loaded
    from tpcal.calibrate.profile import Profile
    from tpcal.calibrate.samples import Samples
    from tpcal.plans.schema import Plan

OUT = Path("tpcal-out")
MAX_LISTED = 100
"""Rows that are named one by one."""


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Nothing, where the path is free or holds a plan, or ``force`` is set.

    Raises:
        UsageError: Something else is there, or its folder is not.
    """
    from tpcal.plans.schema import load_plan

    check_place(path)
    if force or not path.exists():
        return
    try:
        load_plan(path)
    except UsageError:
        way_out = "Name another file with --output, or add --force"
        raise UsageError(f"{path} exists and is not a plan. {way_out}.") from None


def plan_and_model(
    file: str | None, model: ModelChoice, report: terminal.Progress
) -> tuple[Plan | None, Loaded]:
    """The plan, checked against the model it is for or that is asked for."""
    plans, loaded = plans_and_model([file] if file else [], model, report)
    return (plans[file] if file else None), loaded


def plans_and_model(
    names: Sequence[str], model: ModelChoice, report: terminal.Progress
) -> tuple[dict[str, Plan], Loaded]:
    """Plans by name, checked against the model they are for or that is asked for.

    Raises:
        UsageError: A name stands twice, or the plans are for different models.
        FitError: Names every plan that does not fit, and why.
    """
    twice = named_twice(names)
    if twice is not None:
        raise UsageError(f"Every plan must be named once; got {twice} more often.")
    plans = {name: read_plan(off_budget(name)) for name in names}
    report(0, 0, "Loading the model")
    loaded = model.or_else(*_made_for(plans, model)).load()
    plans = {name: _at_depth(name, plan, loaded) for name, plan in plans.items()}
    from tpcal.plans.execute import check as problems_of

    refuse_unfit({name: problems_of(plan, loaded.model) for name, plan in plans.items()})
    return plans, loaded


def named_twice(names: Sequence[str]) -> str | None:
    """The first plan that is named more than once, however its path is spelled."""
    places = [name if is_preset(name) else str(Path(name).resolve()) for name in names]
    pairs = zip(names, places, strict=True)
    return next((name for name, place in pairs if places.count(place) > 1), None)


def refuse_unfit(problems: Mapping[str, Sequence[str]]) -> None:
    """Nothing, where no plan has a problem.

    Args:
        problems: Of each plan, by name.

    Raises:
        FitError: Names every problem of every plan.
    """
    unfit = {name: found for name, found in problems.items() if found}
    if len(unfit) == 1:
        raise FitError(*unfit.popitem())
    if unfit:
        each = [f"{name}: {problem}" for name, found in unfit.items() for problem in found]
        raise FitError(f"{len(unfit)} plans", each)


def _made_for(plans: Mapping[str, Plan], model: ModelChoice) -> tuple[str | None, str | None]:
    """Name and revision of the model that the plans were made for, where they say."""
    named = {name: plan.model for name, plan in plans.items() if plan.model and plan.model.name}
    found = {(made.name, made.revision): name for name, made in named.items()}
    if len(found) > 1 and model.name is None:
        each = ", ".join(f"{file} for {name}" for (name, _), file in found.items())
        raise UsageError(f"The plans must be for one model; got {each}. Name one with --model.")
    return next(iter(found), (None, None))


def _at_depth(name: str, plan: Plan, loaded: Loaded, n_tokens: int | None = None) -> Plan:
    """The same, a preset at the model's depth."""
    return read_plan(name, loaded.shape.n_layers, n_tokens) if is_preset(name) else plan


def plan_model_samples(
    file: str, model: ModelChoice, data: DataChoice, report: terminal.Progress
) -> tuple[Plan, Loaded, Samples]:
    """The plan, its model and unseen samples; a preset on a budget is put on it for these."""
    plans, loaded, samples = plans_model_samples([file], model, data, report)
    return plans[file], loaded, samples


def plans_model_samples(
    names: Sequence[str], model: ModelChoice, data: DataChoice, report: terminal.Progress
) -> tuple[dict[str, Plan], Loaded, Samples]:
    """As `plan_model_samples`, of several plans; errors as `plans_and_model`."""
    plans, loaded = plans_and_model(names, model, report)
    report(0, 0, "Loading the samples")
    samples = data.load("eval")
    tell_source(samples)
    n_tokens = _n_tokens(loaded, samples) if any(is_preset(n) for n in names) else None
    fitted = {name: _at_depth(name, plan, loaded, n_tokens) for name, plan in plans.items()}
    return fitted, loaded, samples


def tell_source(samples: Samples) -> None:
    """One line on what of the data was left out and why, and one on each row that was skipped."""
    from tpcal.views.words import count

    left_out = samples.source.left_out.items()
    if left_out:
        each = ", ".join(f"{count(n, what)} {why}" for (what, why), n in left_out)
        terminal.note(f"{samples.name}: left out {each}.")
    unreadable = samples.source.unreadable
    if unreadable:
        terminal.warn(f"{samples.name}: {count(len(unreadable), 'row')} skipped as unreadable:")
    for problem in unreadable[:MAX_LISTED]:
        terminal.note(problem)
    if len(unreadable) > MAX_LISTED:
        terminal.note(f"and {len(unreadable) - MAX_LISTED} more.")


def count_seen(plans: Mapping[str, Plan], samples: Samples) -> int:
    """Samples that any of the plans was made from; errors as `seen_by`."""
    seen = seen_by(plans)
    return sum(identity in seen for identity in samples.identities)


def seen_by(plans: Mapping[str, Plan]) -> set[bytes]:
    """Identities of what the plans were made from; published plans were made from nothing.

    Raises:
        UsageError: A plan was made from samples and does not say which.
    """
    from tpcal.calibrate.seen import unpack

    seen: set[bytes] = set()
    for name, plan in plans.items():
        if "profile" not in plan.provenance:
            continue
        try:
            seen |= unpack(plan.provenance["data"]["seen"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{name} must say which samples it was made from (provenance.data.seen); got "
                "none. Make it again with tpcal plan."
            ) from None
    return seen


def _n_tokens(loaded: Loaded, samples: Samples) -> int:
    """Visual tokens of the first sample."""
    from tpcal.calibrate.batches import prompt_inputs
    from tpcal.plans.families import find

    inputs = prompt_inputs(loaded.processor, [samples[0]], loaded.model)
    return int(find(loaded.model).visual_mask(loaded.model, inputs["input_ids"], None).sum())


def read_profile(path: Path | None) -> tuple[Path, Profile]:
    """A profile and its folder: the folder itself, or the newest profile below it."""
    from tpcal.calibrate import profile as profiles

    path = path or OUT
    if path.name == "profile.yaml":
        path = path.parent
    folder = path if (path / "profile.yaml").exists() else profiles.newest(path)
    return folder, profiles.load(folder)
