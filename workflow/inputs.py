"""The plans, the model and the samples that belong together: what each names of the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.local_paths import EMBEDDED, locate
from tpcal.plans.plan_names import folder_of, is_preset, load_plan, off_budget
from tpcal.plans.progress import Progress

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.plans.plan_records import Plan

MAX_LISTED = 100
"""Rows that are named one by one."""
_LOG = logging.getLogger(__name__)


def plan_and_model(
    file: str | None, model: ModelChoice, report: Progress
) -> tuple[Plan | None, Loaded]:
    """The plan and the chosen model, or the model of the plan, after a check that they fit.

    Raises:
        UsageError: If neither the plan nor an option names the model.
        FitError: If the plan does not fit the model.
    """
    plans, loaded = plans_and_model([file] if file else [], model, report)
    return (plans[file] if file else None), loaded


def plans_and_model(
    names: Sequence[str], model: ModelChoice, report: Progress
) -> tuple[dict[str, Plan], Loaded]:
    """Plans by name and their model, after a check that they fit.

    Raises:
        UsageError: If a plan is named twice, the plans are for different models, or neither a
            plan nor an option names the model.
        FitError: If plans do not fit; the message lists every problem of every plan.
    """
    plans = _read_plans(names)
    return _loaded(plans, _model_of(plans, model), report)


def _read_plans(names: Sequence[str]) -> dict[str, Plan]:
    twice = named_twice(names)
    if twice is not None:
        raise UsageError(f"Every plan must be named once; got {twice} more often.")
    return {name: load_plan(off_budget(name)) for name in names}


def _loaded(
    plans: Mapping[str, Plan], model: ModelChoice, report: Progress
) -> tuple[dict[str, Plan], Loaded]:
    report(0, 0, "Loading the model")
    loaded = model.load()
    fitted = {name: _at_depth(name, plan, loaded) for name, plan in plans.items()}
    from tpcal.plans.executor.handle import check as problems_of

    refuse_unfit({name: problems_of(plan, loaded.model) for name, plan in fitted.items()})
    return fitted, loaded


def named_twice(names: Sequence[str]) -> str | None:
    """The first plan that is named more than once, under any spelling of its path."""
    places = [name if is_preset(name) else str(Path(name).resolve()) for name in names]
    pairs = zip(names, places, strict=True)
    return next((name for name, place in pairs if places.count(place) > 1), None)


def refuse_unfit(problems: Mapping[str, Sequence[str]]) -> None:
    """Raises FitError if a plan has a problem.

    Args:
        problems: Problems of each plan by name.

    Raises:
        FitError: If there is a problem; the message lists every problem of every plan.
    """
    unfit = {name: found for name, found in problems.items() if found}
    if len(unfit) == 1:
        raise FitError(*unfit.popitem())
    if unfit:
        each = [f"{name}: {problem}" for name, found in unfit.items() for problem in found]
        raise FitError(f"{len(unfit)} plans", each)


def _model_of(plans: Mapping[str, Plan], model: ModelChoice) -> ModelChoice:
    """The chosen model, or the one that the plans were made for, or that of presets alone.

    Raises:
        UsageError: If the plans were made for several models, the model cannot be found, or a
            plan of an unknown model would be judged on the built-in model.
    """
    if model.name is not None:
        return model
    named = {file: plan.model for file, plan in plans.items() if plan.model and plan.model.name}
    places = {(made.name, made.revision): file for file, made in named.items()}
    if len(places) > 1:
        each = ", ".join(f"{file} for {name}" for (name, _), file in places.items())
        raise UsageError(f"The plans must be for one model; got {each}. Name one with --model.")
    for (name, revision), file in places.items():
        return model.or_else(locate(str(name), folder_of(file), file, "--model"), revision)
    silent = next((file for file in plans if not is_preset(file)), None)
    if silent is not None:
        raise UsageError(
            f"The model of {silent} must be named with --model, as the plan names none; got none."
        )
    return model


def _as_measured(plans: Mapping[str, Plan], model: ModelChoice) -> ModelChoice:
    """The model in the precision that the plans were measured in, unless another one is named."""
    known = {
        str(plan.provenance["dtype"]) for plan in plans.values() if "dtype" in plan.provenance
    }
    if model.dtype != "auto" or len(known) != 1 or model.loaded is not None:
        return model
    return replace(model, dtype=known.pop())


def data_of(plans: Mapping[str, Plan], data: DataChoice, model: ModelChoice) -> DataChoice:
    """The chosen data, or the data that the plans were made from, or that of the model.

    Raises:
        UsageError: If the plans were made from several data sets, or the data set cannot be
            found.
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
    return data.for_model(model)


def _record(file: str, plan: Plan) -> DataChoice | None:
    """The data that a plan was made from, with its current path; None if the plan has no record.

    The built-in questions count as not named, because they are for the built-in model only.

    Raises:
        UsageError: The record does not say where the data is, as in plans that were shared.
    """
    record = plan.provenance.get("data")
    if not isinstance(record, Mapping) or not {"data", "fingerprint"} & set(record):
        return None
    if "data" not in record:
        raise UsageError(
            f"The data that {file} was made from ({record.get('name', 'unknown')}) must be named "
            "with --data; the plan does not say where it is."
        )
    choice = DataChoice().over(DataChoice.restored(record))
    if choice.data in (None, EMBEDDED):
        return DataChoice(seed=choice.seed, metric=choice.metric)
    return replace(choice, data=locate(choice.data, folder_of(file), file, "--data"))


def _at_depth(name: str, plan: Plan, loaded: Loaded, n_tokens: int | None = None) -> Plan:
    """The same plan; a preset is scaled to the depth of the model."""
    return load_plan(name, loaded.shape.n_layers, n_tokens) if is_preset(name) else plan


def plan_model_samples(
    file: str, model: ModelChoice, data: DataChoice, report: Progress
) -> tuple[Plan, Loaded, Samples]:
    """The plan, its model and unseen samples; see `plans_model_samples`."""
    plans, loaded, samples = plans_model_samples([file], model, data, report)
    return plans[file], loaded, samples


def plans_model_samples(
    names: Sequence[str],
    model: ModelChoice,
    data: DataChoice,
    report: Progress,
    *,
    allow_seen: bool = False,
) -> tuple[dict[str, Plan], Loaded, Samples]:
    """The plans by name, their model and samples that the plans were not made from.

    Samples that the plans were made from are left out, unless a number of samples is chosen or
    ``allow_seen`` is true. A preset with a budget is scaled for the tokens of the first sample.
    Raises the errors of `plans_and_model` and `data_of`.
    """
    plans, loaded, choice = _plans_model_data(names, model, data, report)
    report(0, 0, "Loading the samples")
    samples = choice.load("eval")
    log_source(samples)
    if choice.samples is None and not allow_seen:
        from tpcal.calibrate.evaluation.seen_samples import seen_by

        samples = samples.without(seen_by(plans))
    n_tokens = _n_tokens(loaded, samples) if any(is_preset(n) for n in names) else None
    fitted = {name: _at_depth(name, plan, loaded, n_tokens) for name, plan in plans.items()}
    return fitted, loaded, samples


def plan_model_new_samples(
    file: str, model: ModelChoice, data: DataChoice, n: int, report: Progress
) -> tuple[Plan, Loaded, Samples]:
    """The plan, its model, and samples that neither its search nor its certificate has seen.

    The number of samples is ``n`` unless the choice names one; there are fewer if the data has no
    more new ones. Whose answers count is as in the search. Raises the errors of `plans_and_model`
    and `data_of`, and UsageError if no sample is new.
    """
    from tpcal.calibrate.evaluation.seen_samples import seen_by, tested_by

    plans, loaded, choice = _plans_model_data([file], model, data, report)
    plan = plans[file]
    if data.seed is None:  # in the order of the plan, the first samples are those it has seen
        choice = replace(choice, seed=(choice.seed or 0) + 1)
    facts = plan.provenance.get("data")
    own = bool(facts.get("own_answers")) if isinstance(facts, Mapping) else False
    choice = replace(choice, own_answers=choice.own_answers or own)
    report(0, 0, "Loading the samples")
    seen = seen_by({file: plan}) | tested_by(file, plan)
    return plan, loaded, _new_samples(choice, seen, choice.samples or n)


def _new_samples(choice: DataChoice, seen: frozenset[bytes], n: int) -> Samples:
    """The first ``n`` samples that are not in ``seen``; draws more until there are so many."""
    n_drawn = n if not seen else 2 * n
    while True:
        samples = replace(choice, samples=n_drawn).load("eval")
        n_new = sum(identity not in seen for identity in samples.identities)
        if n_new >= n or len(samples) < n_drawn:
            log_source(samples)
            return samples.without(seen).part(0, n)
        n_drawn *= 2


def _plans_model_data(
    names: Sequence[str], model: ModelChoice, data: DataChoice, report: Progress
) -> tuple[dict[str, Plan], Loaded, DataChoice]:
    """The plans by name, their model, and the choice of their data."""
    plans = _read_plans(names)
    model = _as_measured(plans, _model_of(plans, model))
    choice = data_of(plans, data, model)
    return *_loaded(plans, model, report), choice


def _n_tokens(loaded: Loaded, samples: Samples) -> int:
    """The number of visual tokens of the first sample."""
    from tpcal.calibrate.inputs.batches import n_tokens, prompt_inputs

    return n_tokens(loaded, prompt_inputs(loaded.processor, [samples[0]], loaded.model))[0][0]


def log_source(samples: Samples) -> None:
    """Logs what of the data was left out and why, and every row that was skipped."""
    source, name = samples.source, samples.name
    if source.left_out:
        each = ", ".join(f"{_count(n, what)} {why}" for (what, why), n in source.left_out.items())
        _LOG.info("%s: left out %s.", name, each)
    unreadable = source.unreadable
    if unreadable:
        _LOG.warning("%s: %s skipped as unreadable:", name, _count(len(unreadable), "row"))
    for problem in unreadable[:MAX_LISTED]:
        _LOG.info("%s", problem)
    if len(unreadable) > MAX_LISTED:
        _LOG.info("and %s more.", len(unreadable) - MAX_LISTED)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
