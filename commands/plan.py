"""`tpcal plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpcal import options, terminal
from tpcal.calibrate.inputs.choices import ModelChoice
from tpcal.commands.hints import after_front, after_plan
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.workflow.settings import PlanLimits, PlanningSettings

if TYPE_CHECKING:
    from tpcal.planner.prediction.budget import Budget


@click.command(short_help="Choose the cuts for a budget, or the cheapest within a loss.")
@click.argument("given", metavar="[PROFILE]", required=False, type=click.Path(path_type=Path))
@options.budget_options
@options.limit_options
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=options.weight,
    metavar="GROUP=W",
    help="What a group's loss counts beside the others'; may be repeated.  [default: 1]",
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from, as PROFILE.  [default: the newest in tpcal-out]",
)
@options.output_options("plan.yaml")
@click.option(
    "--trials",
    "n_trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Plans to measure.  [default: 100; of the whole front 300]",
)
@click.option("--timeout", type=options.Finite(min=0), metavar="S", help="Stop after S seconds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--max-cuts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Most cuts in a plan.",
)
@click.option("--no-measure", is_flag=True, help="Predict only; the model is not loaded.")
@click.option("--data", metavar="DATA", help="Where the profile's samples are now, if they moved.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to compare plans on.  [default: as many as the profile has]",
)
@options.model_options
@options.batch_size_option(16)
@options.memory_option
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL that keeps the search.  [default: in the profile]",
)
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
    """Choose the cuts that lose least at the cost you name, or cost least at the loss you name.

    Needs a profile from 'tpcal calibrate'. Candidates are measured by running the model on
    samples drawn like the profile's, the best ones on further samples too; what counts is half
    the loss of the worst group and half the mean. With --no-measure, the profile's prediction
    decides. Interrupt it at any time: the same command continues.

    With a budget, --max-loss and --max-flips refuse a plan that loses more. Without one, they
    ask for the cheapest plan that does not. A measured share of changed answers is what
    these samples showed; with --confidence the plan comes with a proof for all samples like
    them, or exits with 4 and says how many samples that takes.

    With neither, the whole front is searched: plans for budgets from 0.05 to 0.8. Then any
    budget between is answered in seconds by what was measured, without the model; the output
    says whether the plan's loss is measured or predicted. --trials makes it search again.

    \b
    Examples:
      tpcal plan
      tpcal plan --budget 0.22
      tpcal plan tpcal-out/embedded-1f2e3d4c5b --budget 0.22
      tpcal plan --budget 0.1 --no-measure -o light.yaml
      tpcal plan --budget-kv 30% --max-loss 0.05 --trials 200 --timeout 600
      tpcal plan --max-loss 0.05
      tpcal plan --max-flips 0.05 --confidence 0.95 --weight count=2
    """
    from tpcal.views.front_view import front_view, stored_line
    from tpcal.views.plan_view import plan_view
    from tpcal.workflow.search import find_front, find_plan

    with options.wrong_usage():
        limits.check(measure=not no_measure)
    if given is not None and folder is not None:
        raise click.UsageError(f"Only one profile can be given; got {given} and {folder}.")
    refuse_to_overwrite(output, force)
    how = PlanningSettings(measure=not no_measure, command=terminal.command(), **settings)
    given, screen = given or folder, terminal.console()
    with terminal.progress() as report:
        common: dict[str, Any] = {"model": model, "settings": how, "progress": report}
        if budget is None and not limits.any:
            front = find_front(given, **common)
            title = str(front.stored.folder)
            screen.print(front_view(front.points, title=title, names=front.names))
            after_front(front.points)
            return
        found = find_plan(given, budget, limits=limits, **common)
    made = found.save(output)
    screen.print(plan_view(made, title=str(output)))
    if found.known is not None:
        screen.print(stored_line(found.known.measured, found.known.n_measured))
    after_plan(made, output)
    for warning in found.stored.warnings:
        terminal.warn(warning)
