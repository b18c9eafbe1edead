"""What commands read: plans, profiles, models, and the answers of both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpcal import terminal
from tpcal.options import DataChoice, ModelChoice
from tpcal.plans.errors import FitError, UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.evaluate import Evaluation
    from tpcal.calibrate.models import Loaded
    from tpcal.calibrate.profile import Profile
    from tpcal.calibrate.samples import Samples
    from tpcal.plans.schema import Plan

OUT = Path("tpcal-out")
PRESET = "preset:"


def read_plan(name: str, n_layers: int | None = None, n_tokens: int | None = None) -> Plan:
    """The plan in a file, or the published schedule called `preset:NAME` or `preset:NAME@BUDGET`.

    Args:
        name: Path or preset.
        n_layers: Depth that a preset is scaled to.
        n_tokens: Visual tokens of a prompt, for which a preset is put on a budget.
    """
    from tpcal.plans.schema import load_plan, load_preset

    if not name.startswith(PRESET):
        return load_plan(name)
    preset, at, budget = name.removeprefix(PRESET).partition("@")
    published = load_preset(preset, n_layers)
    if not at:
        return published
    from tpcal.planner.published import N_TOKENS, at_budget
    from tpcal.planner.words import share_kept

    assert published.model is not None, "presets name their depth"
    depth = published.model.n_layers
    return at_budget(preset, share_kept(budget), depth, n_tokens or N_TOKENS)


def refuse_to_overwrite(path: Path, force: bool) -> None:
    """Nothing, where the path is free or holds a plan, or ``force`` is set.

    Raises:
        UsageError: Something else is there.
    """
    from tpcal.plans.schema import load_plan

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
    found = read_plan(file) if file else None
    made_for = found.model if found else None
    if made_for is not None:
        model = model.or_else(made_for.name, made_for.revision)
    report(0, 0, "Loading the model")
    loaded = model.load()
    if file is None or found is None:
        return None, loaded
    if file.startswith(PRESET):
        found = read_plan(file, loaded.shape.n_layers)
    from tpcal.plans.execute import check as problems_of

    problems = problems_of(found, loaded.model)
    if problems:
        raise FitError(file, problems)
    return found, loaded


def plan_model_samples(
    file: str | None, model: ModelChoice, data: DataChoice, report: terminal.Progress
) -> tuple[Plan | None, Loaded, Samples]:
    """The plan, its model and unseen samples; a preset on a budget is put on it for these."""
    found, loaded = plan_and_model(file, model, report)
    report(0, 0, "Loading the samples")
    samples = data.load("eval")
    if file is not None and file.startswith(PRESET):
        found = read_plan(file, loaded.shape.n_layers, _n_tokens(loaded, samples))
    return found, loaded, samples


def both_answers(
    file: str | None, model: ModelChoice, data: DataChoice, batch_size: int, max_new_tokens: int
) -> tuple[Plan | None, Samples, Evaluation]:
    """The plan, unseen samples, and their answers with and without the plan."""
    with terminal.progress() as report:
        found, loaded, samples = plan_model_samples(file, model, data, report)
        from tpcal.calibrate.evaluate import evaluate as run_both

        evaluation = run_both(
            loaded,
            samples,
            found,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=report,
        )
    return found, samples, evaluation


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
