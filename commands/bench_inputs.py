"""What `tpcal bench` times: a model, or random weights of its widths, and plans that fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tpcal import terminal
from tpcal.calibrate.inputs.choices import ModelChoice
from tpcal.planner.published.names import is_preset, off_budget, read_plan
from tpcal.plans.redaction import without_machine
from tpcal.workflow.inputs import plans_and_model, refuse_unfit

if TYPE_CHECKING:
    from tpcal.calibrate.bench.prompt_sizes import PromptSize
    from tpcal.plans.schema import Plan

InputsOf = Callable[["PromptSize"], Mapping[str, Any]]


@dataclass(frozen=True)
class BenchSubject:
    """A model, its prompts and the plans to time on it."""

    model: Any
    inputs_of: InputsOf
    """What `generate` takes."""
    plans: Mapping[str, Plan]
    about: Mapping[str, Any]
    """What is timed, for the JSON."""
    lines: tuple[str, ...]
    """The same for people."""


def loaded_subject(
    names: Sequence[str], choice: ModelChoice, image_size: int, report: terminal.Progress
) -> BenchSubject:
    """A model with its weights; errors as `tpcal.workflow.inputs.plans_and_model`.

    Args:
        names: Plans, as `read_plan` takes them.
        choice: The model; where it names none, the one that the plans were made for.
        image_size: Pixels along a side of an image.
        report: Told what is being loaded.
    """
    plans, loaded = plans_and_model(names, choice, report)
    from tpcal.calibrate.bench.synthetic_prompts import inputs_for
    from tpcal.calibrate.inputs.models import device_of

    def inputs_of(shape: PromptSize) -> Mapping[str, Any]:
        return inputs_for(loaded, shape, image_size)

    identity, n_layers = loaded.identity, loaded.shape.n_layers
    about = {
        "name": without_machine(loaded.name),
        "family": identity.family,
        "fingerprint": identity.fingerprint,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(device_of(loaded.model)),
    }
    return BenchSubject(
        loaded.model,
        inputs_of,
        plans | _presets(names, n_layers, loaded.model, inputs_of),
        {"model": about},
        (f"{loaded.name}, {n_layers} layers",),
    )


def random_subject(
    names: Sequence[str],
    geometry: str,
    n_layers: int | None,
    choice: ModelChoice,
    image_size: int,
) -> BenchSubject:
    """Random weights of a real model's widths; plans made for other models are scaled to them.

    Args:
        names: Plans, as `read_plan` takes them.
        geometry: One of `tpcal.calibrate.bench.geometry.GEOMETRIES`.
        n_layers: Depth; None: the model's.
        choice: Device, dtype and attention.
        image_size: Pixels along a side of an image.

    Raises:
        FitError: Some plans do not fit; names every problem.
        RunFailed: The weights do not fit into memory.
    """
    from tpcal.calibrate.bench.geometry import GEOMETRIES, build, check_memory, prompts
    from tpcal.calibrate.inputs.models import DTYPES, find_device
    from tpcal.plans.executor.handle import check
    from tpcal.views.formats import binary

    read = {name: read_plan(off_budget(name)) for name in names}
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
        {"geometry": {**about, "n_layers_of_model": whole.n_layers, "device": str(device)}},
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
    """The published schedules among the plans, at the model's depth and the prompts' budget."""
    from tpcal.calibrate.bench.prompt_sizes import PromptSize
    from tpcal.plans.families import find

    presets = [name for name in names if is_preset(name)]
    if not presets:
        return {}
    ids = inputs_of(PromptSize())["input_ids"]
    n_visual = int(find(model).visual_mask(model, ids, None).sum())
    return {name: read_plan(name, n_layers, n_visual) for name in presets}


def _blind(plan: Plan) -> list[str]:
    """Cuts that cannot be timed where no vision tower is run."""
    from tpcal.plans.selectors import create

    return [
        f"cuts[{i}].selector must not read the vision tower, which --model-geometry leaves out; "
        f"got {cut.selector}. Time it with the model's weights."
        for i, cut in enumerate(plan.cuts)
        if cut.selector is not None and "vision" in create(cut.selector, cut.params).needs
    ]
