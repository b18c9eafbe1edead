"""The command `tpcal check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.options import groups
from tpcal.plans.errors import FitError
from tpcal.plans.plan_names import load_plan
from tpcal.workflow.inputs import plan_and_model, plans_and_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tpcal.plans.plan_records import Plan


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
    from tpcal.views.check_view import check_view

    if deep:
        _try_laws(file, model)
        return
    if file is None:
        raise click.UsageError("Missing argument 'PLAN'; only --deep can do without.")
    screen = terminal.console()
    if model.name is None:
        found = load_plan(file)
        if engine:
            _run_in(engine, file, found, None)
        screen.print(check_view(found, file, None))
        return
    with terminal.progress() as report:
        fitted, loaded = plans_and_model([file], model, report)
    found = fitted[file]
    notes = _run_in(engine, file, found, loaded.model) if engine else []
    screen.print(check_view(found, file, loaded.name))
    for note in notes:
        screen.print(note, highlight=False, markup=False)


def _run_in(name: str, file: str, plan: Plan, model: PreTrainedModel | None) -> list[str]:
    """What the plan does in an engine, a line each; empty if only problems are known.

    Raises:
        FitError: The plan does not run there.
    """
    from tpcal.plans import engines

    engine = engines.named(name)
    if engine is engines.VLLM and model is not None:
        return _run_in_vllm(file, plan, model)
    problems = engine.plan_problems(plan)
    if problems:
        raise FitError(f"{file} in {engine.title}", problems)
    return []


def _run_in_vllm(file: str, plan: Plan, model: PreTrainedModel) -> list[str]:
    """What the plan does in vLLM with this model, a line each.

    Raises:
        FitError: The plan does not run there.
    """
    from tpcal.integrations.vllm import configuration, support
    from tpcal.plans import engines

    problems = configuration.model_problems(plan, model, untried=False)
    if problems:
        raise FitError(f"{file} in vLLM", problems)
    n_layers = configuration.n_layers(model)
    videos = engines.VLLM.videos(plan, type(model).__name__)
    prompt = configuration.counted_prompt(plan, model)
    line = support.summary(plan, n_layers, *prompt, videos)
    return [f"In vLLM: {line}", *support.notes(plan, n_layers)]


def _try_laws(file: str | None, model: ModelChoice) -> None:
    """Prints the verdict of every law on the model.

    Raises:
        FitError: A law does not hold.
    """
    from tpcal.views.check_view import laws_view

    with terminal.progress() as report:
        found, loaded = plan_and_model(file, model, report)
        from tpcal.calibrate import executor_laws

        verdicts = executor_laws.judge(loaded, found, progress=report)
    title = f"{loaded.name}, {loaded.model.dtype} on {loaded.model.device}".replace("torch.", "")
    terminal.console().print(laws_view(verdicts, title=f"{title}, with {file}" if file else title))
    broken = [v for v in verdicts if v.holds is False]
    if broken:
        raise FitError(loaded.name, [f"{v.law.says} Broken: {v.detail}." for v in broken])
