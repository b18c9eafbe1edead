"""The command `tpcal plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.hints import after_front, after_plan, typed
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.options import groups, values
from tpcal.workflow.step_settings import PlanLimits, PlanningSettings

if TYPE_CHECKING:
    from tpcal.planner.prediction.budget import Budget


@click.command(short_help="Choose the cuts for a budget, or within a loss.")
@click.argument("given", metavar="[PROFILE]", required=False, type=click.Path(path_type=Path))
@groups.budget_options
@groups.limit_options
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=values.weight,
    metavar="GROUP=W",
    help="Weight of the loss of a group. May be given several times.  [default: 1]",
)
@click.option(
    "--objective",
    type=click.Choice(["mean", "mixed", "worst"]),
    default="mixed",
    show_default=True,
    help="What the search minimises: the mean loss of all groups, the loss of the worst group, or "
    "three quarters of the mean and a quarter of the worst.",
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from; the same as PROFILE.  [default: the newest in tpcal-out]",
)
@groups.output_options("plan.yaml")
@groups.engine_option("Choose only plans that run in this serving engine.")
@groups.trials_option(
    " The budgets of the whole front share them evenly, with 6 or more for each.  [default: 100, "
    "or 300 for the whole front]"
)
@groups.search_options
@groups.model_options
@groups.batch_size_option(16)
@groups.memory_option
def plan(
    given: Path | None,
    folder: Path | None,
    output: Path,
    force: bool,
    budget: Budget | None,
    limits: PlanLimits,
    no_measure: bool,
    model: ModelChoice,
    **settings: Any,
) -> None:
    """Choose the cuts that lose least within a budget, or cost least within a loss.

    The command needs a profile from 'tpcal calibrate'. It runs the model to measure candidate
    plans on samples drawn like those of the profile, and the best plans on further samples.
    It minimises three quarters of the mean loss of all groups plus a quarter of the loss of the
    worst group, unless --objective names another.
    With --no-measure, predicted losses decide. You can interrupt the command at any time; the
    same command continues.

    With a budget, the command refuses a plan that exceeds --max-loss or --max-flips. Without
    a budget, it searches for the cheapest plan within them. The measured share of
    changed answers holds for the samples that were measured. With --confidence, the plan
    comes with a proof for all samples like them. If the proof fails, the command exits with
    4 and states how many samples are needed.

    Without a budget or a limit, the command searches the whole front: plans for budgets
    from 0.05 to 0.8. Afterwards it answers any budget between them in seconds without the
    model, and states whether the loss of the plan is measured or predicted. --trials makes it
    search again.

    With --engine vllm, the plan has only selectors and cuts that run in vLLM, and its stages
    need at most 8 block tables. With --engine embeddings, the plan cuts before layer 0 only,
    for engines that cannot cut inside the decoder. The engine need not be installed.

    \b
    Examples:
      tpcal plan
      tpcal plan --budget 0.22
      tpcal plan tpcal-out/embedded-1f2e3d4c5b --budget 0.22
      tpcal plan --budget 0.1 --no-measure -o light.yaml
      tpcal plan --budget-kv 30% --max-loss 0.05 --trials 200 --timeout 600
      tpcal plan --budget 0.22 --engine vllm
      tpcal plan --max-loss 0.05
      tpcal plan --max-flips 0.05 --confidence 0.95 --weight count=2
    """
    from tpcal.plans.engines import in_engine
    from tpcal.views.front_view import front_view, stored_line
    from tpcal.views.plan_view import plan_view
    from tpcal.workflow.search import find_front, find_plan

    with groups.wrong_usage():
        limits.check(measure=not no_measure)
    if given is not None and folder is not None:
        raise click.UsageError(f"Only one profile can be given; got {given} and {folder}.")
    if budget is None and not limits.any:
        if typed("output", "force"):
            raise click.UsageError(
                "Without a budget or a limit the whole front is searched and no plan is written; "
                "name a budget, or leave out --output and --force."
            )
    else:
        refuse_to_overwrite(output, force)
    how = PlanningSettings(measure=not no_measure, command=terminal.command(), **settings)
    given, screen = given or folder, terminal.console()
    with terminal.progress() as report:
        common: dict[str, Any] = {"model": model, "settings": how, "progress": report}
        if budget is None and not limits.any:
            front = find_front(given, **common)
            title = str(front.stored.folder)
            screen.print(front_view(front.points, title, front.objective, front.names))
            after_front(front.points)
            return
        found = find_plan(given, budget, limits=limits, **common)
    made = found.save(output)
    screen.print(plan_view(made, title=str(output)))
    for line in in_engine(made):
        screen.print(line, highlight=False, markup=False)
    if found.known is not None:
        screen.print(stored_line(found.known.measured, found.known.n_measured))
    after_plan(made, output)
    for warning in found.stored.warnings:
        terminal.warn(warning)
