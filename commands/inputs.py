"""What commands read: plans, profiles, models and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal import terminal
from tpcal.commands.outputs import check_place
from tpcal.options import DataChoice, ModelChoice
from tpcal.planner.published.names import is_preset, off_budget, read_plan
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.local_paths import EMBEDDED, locate

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.calibrate.profile import Profile
    from tpcal.plans.schema import Plan

OUT = Path("tpcal-out")
MAX_LISTED = 100
"""Rows that are named one by one."""


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Nothing, where the path is free or holds a plan, or ``force`` is set.

    Raises:
        UsageError: Something else is there, or its folder is not.
    """
    from tpcal.plans.plan_file import load_plan

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
    """The plan, checked against the model it is for or that is asked for.

    Raises:
        UsageError: The plan names no model, and none is asked for.
        FitError: The plan does not fit.
    """
    plans = _read_plans([file] if file else [])
    model = _model_of(plans, model)
    _refuse_silent(plans, model)
    plans, loaded = _loaded(plans, model, report)
    return (plans[file] if file else None), loaded


def plans_and_model(
    names: Sequence[str], model: ModelChoice, report: terminal.Progress
) -> tuple[dict[str, Plan], Loaded]:
    """Plans by name, checked against the model they are for or that is asked for.

    Raises:
        UsageError: A name stands twice, or the plans are for different models.
        FitError: Names every plan that does not fit, and why.
    """
    plans = _read_plans(names)
    return _loaded(plans, _model_of(plans, model), report)


def _read_plans(names: Sequence[str]) -> dict[str, Plan]:
    twice = named_twice(names)
    if twice is not None:
        raise UsageError(f"Every plan must be named once; got {twice} more often.")
    return {name: read_plan(off_budget(name)) for name in names}


def _loaded(
    plans: Mapping[str, Plan], model: ModelChoice, report: terminal.Progress
) -> tuple[dict[str, Plan], Loaded]:
    report(0, 0, "Loading the model")
    loaded = model.load()
    fitted = {name: _at_depth(name, plan, loaded) for name, plan in plans.items()}
    from tpcal.plans.executor.handle import check as problems_of

    refuse_unfit({name: problems_of(plan, loaded.model) for name, plan in fitted.items()})
    return fitted, loaded


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


def _model_of(plans: Mapping[str, Plan], model: ModelChoice) -> ModelChoice:
    """The model that is asked for, or that the plans were made for.

    Raises:
        UsageError: The plans were made for several, or for one that has moved.
    """
    if model.name is not None:
        return model
    named = {file: plan.model for file, plan in plans.items() if plan.model and plan.model.name}
    places = {(made.name, made.revision): file for file, made in named.items()}
    if len(places) > 1:
        each = ", ".join(f"{file} for {name}" for (name, _), file in places.items())
        raise UsageError(f"The plans must be for one model; got {each}. Name one with --model.")
    for (name, revision), file in places.items():
        return model.or_else(locate(str(name), Path(file).parent, file, "--model"), revision)
    return model


def _refuse_silent(plans: Mapping[str, Plan], model: ModelChoice) -> None:
    """Nothing, where a model is named, by the user or a plan, or there are only presets.

    Raises:
        UsageError: A plan of some other model would be judged on the built-in one.
    """
    silent = next((file for file in plans if not is_preset(file)), None)
    if model.name is None and silent is not None:
        raise UsageError(
            f"The model of {silent} must be named with --model, as the plan names none; got none."
        )


def data_of(plans: Mapping[str, Plan], data: DataChoice, model: ModelChoice) -> DataChoice:
    """The data that is asked for, that the plans were made from, or of the built-in model.

    Raises:
        UsageError: The plans were made from several data sets, from one that has moved, or from
            none, and the model has no questions of its own.
    """
    if data.data is None:
        records = {
            file: _record(file, plan) for file, plan in plans.items() if not is_preset(file)
        }
        known = {replace(one, seed=None): file for file, one in records.items() if one}
        if len(known) > 1:
            each = ", ".join(f"{file} of {one.data or EMBEDDED}" for one, file in known.items())
            raise UsageError(
                f"The plans must be of one data set; got {each}. Name it with --data."
            )
        for file in known.values():
            data = data.over(records[file] or data)
    data.check_asked_of(model)
    return data


def _record(file: str, plan: Plan) -> DataChoice | None:
    """What a plan was made from, seen from here; None where it does not say.

    The built-in questions are taken for the built-in model only: as if they were not named.
    """
    record = plan.provenance.get("data")
    if not isinstance(record, Mapping) or "data" not in record:
        return None
    choice = DataChoice().over(DataChoice.restored(record))
    if choice.data in (None, EMBEDDED):
        return replace(choice, data=None)
    return replace(choice, data=locate(choice.data, Path(file).parent, file, "--data"))


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
    names: Sequence[str],
    model: ModelChoice,
    data: DataChoice,
    report: terminal.Progress,
    *,
    allow_seen: bool = False,
) -> tuple[dict[str, Plan], Loaded, Samples]:
    """As `plan_model_samples`, of several plans; errors as `plans_and_model` and `data_of`.

    Samples that the plans were made from are left out where no number of samples is asked for.
    """
    plans = _read_plans(names)
    model = _model_of(plans, model)
    _refuse_silent(plans, model)
    choice = data_of(plans, data, model)
    plans, loaded = _loaded(plans, model, report)
    report(0, 0, "Loading the samples")
    samples = choice.load("eval")
    tell_source(samples)
    if choice.samples is None and not allow_seen:
        samples = samples.without(seen_by(plans))
    n_tokens = _n_tokens(loaded, samples) if any(is_preset(n) for n in names) else None
    fitted = {name: _at_depth(name, plan, loaded, n_tokens) for name, plan in plans.items()}
    return fitted, loaded, samples


def tell_source(samples: Samples) -> None:
    """One line on what of the data was left out and why, and one on each row that was skipped."""
    from tpcal.views.formats import count

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
    from tpcal.calibrate.inputs.sample_digests import unpack

    seen: set[bytes] = set()
    for name, plan in plans.items():
        if "profile" not in plan.provenance:
            continue
        try:
            seen |= unpack(plan.provenance["data"]["seen"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{name} must say which samples it was made from (its key `seen`); got "
                "none. Make it again with tpcal plan."
            ) from None
    return seen


def _n_tokens(loaded: Loaded, samples: Samples) -> int:
    """Visual tokens of the first sample."""
    from tpcal.calibrate.inputs.batches import prompt_inputs
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
