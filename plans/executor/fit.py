"""Finds all reasons why a plan does not fit a model, each with a way out."""

from __future__ import annotations

from transformers import PreTrainedModel

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import kernels
from tpcal.plans.executor.wrappers import unwrapped
from tpcal.plans.families import find, identity
from tpcal.plans.images import vision_reader
from tpcal.plans.plan_records import ModelIdentity, Plan
from tpcal.plans.plan_rules import UnknownSelector, is_sound, problems_at
from tpcal.plans.selectors import create

KERNELS = ("sdpa", "eager")
"""The attention kernels that every installation has."""


def check(plan: Plan, model: PreTrainedModel) -> list[str]:
    """The reasons why the plan does not fit the model, one sentence each; empty if it fits.

    Example:
        >>> import tpcal
        >>> from transformers import AutoModelForImageTextToText
        >>> from tpcal.calibrate.embedded import FOLDER  # or the name of a model on the Hub
        >>> model = AutoModelForImageTextToText.from_pretrained(FOLDER)
        >>> tpcal.check(tpcal.load_preset("divprune", n_layers=8), model)
        []
    """
    model = unwrapped(model)
    return identity_problems(plan, model) + run_problems(plan, model)


def identity_problems(plan: Plan, model: PreTrainedModel) -> list[str]:
    """The differences between the model that the plan was made for and this one."""
    if plan.model is None:
        return []
    try:
        mine = identity(model)
    except UsageError:
        return []  # `run_problems` reports this error
    if plan.model == ModelIdentity(plan.model.n_layers) and plan.model.n_layers != mine.n_layers:
        return [
            f"model.n_layers must be {mine.n_layers}, as this model has; got "
            f"{plan.model.n_layers}. Scale a preset: load_preset(name, "
            f"n_layers={mine.n_layers}), or 'preset:NAME' as the plan's name."
        ]
    problems = []
    for field in ("n_layers", "family", "architecture", "fingerprint"):
        made_for, got = getattr(plan.model, field), getattr(mine, field)
        if made_for is not None and made_for != got:
            problems.append(
                f"model.{field} must be {got}, as this model has; got {made_for}. "
                "Calibrate this model; in Python, check=False applies it all the same."
            )
    return problems


def run_problems(plan: Plan, model: PreTrainedModel) -> list[str]:
    """The reasons why the executor cannot run the plan on the model, whatever it was made for."""
    try:
        family = find(model)
    except UsageError as error:
        return [str(error)]
    broken = problems_at(plan, len(family.layers(model)))
    problems = [p for p in broken if not isinstance(p, UnknownSelector)]  # `create` names it below
    problems += family.problems(model)
    allowed = family.cut_layers(model)
    for i, cut in enumerate(plan.cuts):
        if not is_sound(cut):
            continue
        if cut.layer not in allowed and cut.layer < len(family.layers(model)):
            problems.append(
                f"cuts[{i}].layer must be in {allowed.start}..{allowed.stop - 1} for "
                f"{type(model).__name__}; got {cut.layer}."
            )
        if cut.selector is None:
            continue
        try:
            selector = create(cut.selector, cut.params)
        except UsageError as error:
            problems.append(f"cuts[{i}].selector: {error}")
            continue
        unread = vision_reader.problem(family, model) if "vision" in selector.needs else None
        if unread is not None:
            problems.append(f"cuts[{i}].selector: {cut.selector} {unread}")
        if cut.layer < selector.min_layer:
            problems.append(
                f"cuts[{i}].layer must be at least {selector.min_layer} for {cut.selector}, which "
                f"reads the attention of the layer before; got {cut.layer}."
            )
    return problems + _model_problems(model)


def _model_problems(model: PreTrainedModel) -> list[str]:
    """The reasons why the executor can run no plan on the model as it was loaded."""
    kernel = model.config.get_text_config(decoder=True)._attn_implementation
    found = kernels.problem(kernel, kernels.devices(model))
    return [] if found is None else [found]
