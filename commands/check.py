"""The command `tpcal check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.options import groups
from tpcal.plans.errors import FitError
from tpcal.plans.plan_names import is_preset, load_plan
from tpcal.workflow.inputs import plan_and_model, plans_and_model

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.plans.plan_records import Plan

_TRIED_SIZE = (336, 336)


@click.command(short_help="Check a plan file and whether it fits a model.")
@click.argument("file", metavar="[PLAN]", required=False)
@click.option(
    "--deep", is_flag=True, help="Test all laws of pruning on the model, with or without PLAN."
)
@groups.engine_option("Check whether the plan runs in this serving engine.")
@groups.model_options
def check(file: str | None, deep: bool, engine: str | None, model: ModelChoice) -> None:
    """Check a plan file, and with --model also whether it fits that model.

    The command reports all problems at once. It exits with 2 if the file is invalid, and
    with 5 if the plan does not fit the model.

    With --engine vllm, the command also says what of the plan does not run in vLLM and why,
    and with --model what the plan saves there. With --engine embeddings, it says what does not
    run in engines that cannot cut inside the decoder. The engine need not be installed.

    With --deep, the command runs the model and tests the laws of pruning: a pruned run equals
    the model with the same tokens hidden by masks, a batch equals its rows, the cache holds
    what the plan states, removing a plan restores the model, and others. This takes minutes
    for a large model. The command exits with 5 if a law does not hold.

    \b
    Examples:
      tpcal check plan.yaml
      tpcal check plan.yaml --model llava-1.5-7b
      tpcal check plan.yaml --engine vllm --model llava-1.5-7b
      tpcal check --deep --model llava-1.5-7b --device cuda
    """
    from tpcal.plans import engines
    from tpcal.views.check_view import check_view

    if file is None and (engine or not deep):
        raise click.UsageError("Missing argument 'PLAN'; it can be left out only with --deep.")
    if deep:
        _try_laws(file, engine, model)
        return
    assert file is not None
    screen, title = terminal.console(), engines.named(engine).title if engine else None
    if model.name is None:
        found = load_plan(file)
        if engine:
            _run_in(engine, file, found)
        screen.print(check_view(found, file, None, title))
        return
    with terminal.progress() as report:
        fitted, loaded = plans_and_model([file], model, report)
    found = fitted[file]
    notes = _run_in(engine, file, found, loaded) if engine else []
    screen.print(check_view(found, file, loaded.name, title))
    for note in notes:
        screen.print(note, highlight=False, markup=False)


def _run_in(name: str, file: str, plan: Plan, loaded: Loaded | None = None) -> list[str]:
    """What the plan does in an engine, a line each; empty if only problems are known.

    Raises:
        FitError: The plan does not run there.
    """
    from tpcal.plans import engines

    engine = engines.named(name)
    if loaded is not None:
        run_in = _run_in_vllm if engine is engines.VLLM else _run_from_embeddings
        return run_in(file, plan, loaded)
    architecture = None if plan.model is None else plan.model.architecture
    problems = engine.plan_problems(plan, architecture)
    if problems:
        raise FitError(f"{file} in {engine.title}", problems)
    return []


def _run_from_embeddings(file: str, plan: Plan, loaded: Loaded) -> list[str]:
    """Nothing; a prompt with an image is tried, up to the first layer.

    Raises:
        FitError: The plan does not run there.
    """
    from PIL import Image

    from tpcal.calibrate.inputs.batches import prompt_inputs
    from tpcal.calibrate.inputs.sample import Sample
    from tpcal.plans.engines import EMBEDDINGS
    from tpcal.plans.executor.prompt_embeddings import pruned_prompt

    asked = Sample("check", (Image.new("RGB", _TRIED_SIZE, "grey"),), "What is shown?")
    inputs = prompt_inputs(loaded.processor, [asked], loaded.model)
    try:
        pruned_prompt(loaded.model, plan, inputs)
    except FitError as error:
        raise FitError(f"{file} in {EMBEDDINGS.title}", error.problems) from None
    return []


def _run_in_vllm(file: str, plan: Plan, loaded: Loaded) -> list[str]:
    """What the plan does in vLLM with this model, a line each.

    Raises:
        FitError: The plan does not run there.
    """
    from tpcal.integrations.vllm import configuration, support
    from tpcal.plans import engines

    model = loaded.model
    n_layers, prompt = configuration.n_layers(model), configuration.counted_prompt(plan, model)
    if is_preset(file):  # as a server scales it
        plan = load_plan(file, n_layers, prompt[0])
    problems = configuration.model_problems(plan, model, untried=False)
    if problems:
        raise FitError(f"{file} in vLLM", problems)
    videos = engines.VLLM.videos(plan, type(model).__name__)
    line = support.summary(plan, n_layers, *prompt, videos)
    return [f"In vLLM: {line}", *support.notes(plan, n_layers)]


def _try_laws(file: str | None, engine: str | None, model: ModelChoice) -> None:
    """Prints the verdict of every law on the model.

    Raises:
        FitError: A law does not hold, or the plan does not run in the engine.
    """
    from tpcal.views.check_view import laws_view

    with terminal.progress() as report:
        found, loaded = plan_and_model(file, model, report)
        if engine and found and file:  # before the laws, which take minutes
            _run_in(engine, file, found, loaded)
        from tpcal.calibrate import executor_laws

        verdicts = executor_laws.judge(loaded, found, progress=report)
    title = f"{loaded.name}, {loaded.model.dtype} on {loaded.model.device}".replace("torch.", "")
    terminal.console().print(laws_view(verdicts, title=f"{title}, with {file}" if file else title))
    broken = [v for v in verdicts if v.holds is False]
    if broken:
        raise FitError(loaded.name, [f"{v.law.says} Broken: {v.detail}." for v in broken])
