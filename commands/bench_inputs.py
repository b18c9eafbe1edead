"""Inputs of `tpcal bench`: a model or random weights of its size, and plans that fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.plan_names import is_preset, load_plan, off_budget
from tpcal.workflow.inputs import plans_and_model, refuse_unfit

if TYPE_CHECKING:
    from tpcal.calibrate.bench.prompt_sizes import PromptSize
    from tpcal.calibrate.inputs.model_facts import ModelFacts
    from tpcal.plans.plan_records import Plan
    from tpcal.plans.progress import Progress

InputsOf = Callable[["PromptSize"], Mapping[str, Any]]


@dataclass(frozen=True)
class BenchSubject:
    """A model with the prompts and plans to time."""

    model: Any
    inputs_of: InputsOf
    """Returns the arguments of `generate` for a prompt size."""
    plans: Mapping[str, Plan]
    facts: ModelFacts | Mapping[str, Any]
    """The model, or facts of random weights, for the JSON file."""
    lines: tuple[str, ...]
    """Description of the model for the terminal."""


def loaded_subject(
    names: Sequence[str], choice: ModelChoice, image_size: int | None, report: Progress
) -> BenchSubject:
    """A model with its weights; errors as `tpcal.workflow.inputs.plans_and_model`.

    Args:
        names: Names of plans as in `load_plan`.
        choice: Choice of the model; without a name, the model that the plans were made for.
        image_size: Height and width of an image in pixels; None takes the size that makes about
            as many visual tokens as the first plan with a cost was made for.
        report: Called with the current step.
    """
    plans, loaded = plans_and_model(names, choice, report)
    from tpcal.calibrate.bench.synthetic_prompts import SIDES, inputs_for, nearest_side
    from tpcal.calibrate.inputs.model_facts import ModelFacts

    wanted = next((plan.cost.n_tokens for plan in plans.values() if plan.cost), None)
    side = image_size or (SIDES[0] if wanted is None else nearest_side(loaded, wanted))

    def inputs_of(shape: PromptSize) -> Mapping[str, Any]:
        return inputs_for(loaded, shape, side)

    n_layers = loaded.shape.n_layers
    return BenchSubject(
        loaded.model,
        inputs_of,
        plans | _presets(names, n_layers, loaded.model, inputs_of),
        ModelFacts.of(loaded),
        (f"{loaded.name}, {n_layers} layers",),
    )


def random_subject(
    names: Sequence[str],
    geometry: str,
    n_layers: int | None,
    choice: ModelChoice,
    image_size: int,
) -> BenchSubject:
    """Random weights in the size of a real model; plans of other models are scaled to its depth.

    Args:
        names: Names of plans as in `load_plan`.
        geometry: One of `tpcal.calibrate.bench.geometry.GEOMETRIES`.
        n_layers: Number of decoder layers; None takes that of the model.
        choice: Choice of device, dtype and attention kernel.
        image_size: Height and width of an image in pixels.

    Raises:
        FitError: If plans do not fit; the message lists every problem.
        RunFailed: If the weights do not fit into memory.
    """
    from tpcal.calibrate.bench.geometry import GEOMETRIES, build, check_memory, prompts
    from tpcal.calibrate.inputs.models import DTYPES, find_device
    from tpcal.plans.executor.handle import check
    from tpcal.plans.formats import binary

    read = {name: load_plan(off_budget(name)) for name in names}
    whole = GEOMETRIES[geometry]
    widths, device = whole.with_layers(n_layers).for_images(image_size), find_device(choice.device)
    auto = "float32" if device.type == "cpu" else "bfloat16"
    dtype = DTYPES[auto if choice.dtype == "auto" else choice.dtype]
    check_memory(geometry, widths, dtype, device)
    model = build(widths, dtype, str(device), choice.attention or "sdpa")

    def inputs_of(shape: PromptSize) -> Mapping[str, Any]:
        return prompts(widths, shape, dtype, device)

    depth, size = widths.n_layers, widths.weight_bytes(dtype)
    presets = _presets(names, depth, model, inputs_of)
    made = {n: plan.scaled(depth) for n, plan in read.items() if n not in presets and plan.model}
    plans = read | made | presets
    refuse_unfit({name: check(plan, model) or _blind(plan) for name, plan in plans.items()})
    about = {"name": geometry, "random_weights": True, **asdict(widths), "weight_bytes": size}
    depths = f"{depth} of {whole.n_layers} layers"
    return BenchSubject(
        model,
        inputs_of,
        plans,
        {**about, "n_layers_of_model": whole.n_layers, "device": str(device)},
        (
            f"{geometry}, {depths}, random weights ({binary(size)})",
            "Images are given encoded: no figure includes a vision tower.",
            *(_scaling(name, read[name], plan) for name, plan in (made | presets).items()),
        ),
    )


def _scaling(name: str, plan: Plan, scaled: Plan) -> str:
    assert plan.model is not None
    made_for = f"{plan.model.name or 'a decoder'}, {plan.model.n_layers} layers"
    here = "its cuts stand at the same depths"
    if len(scaled.cuts) < len(plan.cuts):
        left = f"{len(scaled.cuts)} of its {len(plan.cuts)} cuts" if scaled.cuts else "no cut"
        here = f"{left} can stand, so these are not its times: take more --layers"
    return f"{name} was made for {made_for}; here {here}."


def _presets(
    names: Sequence[str], n_layers: int, model: Any, inputs_of: InputsOf
) -> dict[str, Plan]:
    """The published schedules among the plans, scaled to the depth and the tokens of a prompt."""
    from tpcal.calibrate.bench.prompt_sizes import PromptSize
    from tpcal.plans.families import find

    presets = [name for name in names if is_preset(name)]
    if not presets:
        return {}
    ids = inputs_of(PromptSize())["input_ids"]
    n_visual = int(find(model).visual_mask(model, ids, None).sum())
    return {name: load_plan(name, n_layers, n_visual) for name in presets}


def _blind(plan: Plan) -> list[str]:
    """Problems of cuts that cannot be timed without a vision tower."""
    from tpcal.plans.selectors import create

    return [
        f"cuts[{i}].selector must not read the vision tower, which --model-geometry leaves out; "
        f"got {cut.selector}. Time it with the model's weights."
        for i, cut in enumerate(plan.cuts)
        if cut.selector is not None and "vision" in create(cut.selector, cut.params).needs
    ]
