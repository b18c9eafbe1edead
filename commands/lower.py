"""The command `tpcal lower`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.hints import after_plan
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.options import groups
from tpcal.workflow.step_settings import PlanningSettings


@click.command(short_help="Make the best plan of the same cost for another engine.")
@click.argument("file", metavar="PLAN")
@groups.engine_option("Engine that the plan has to run in.", required=True)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile of the plan's model.  [default: the newest in tpcal-out]",
)
@groups.output_options("lowered.yaml")
@groups.trials_option("  [default: 100]")
@groups.search_options
@groups.model_options
@groups.batch_size_option(16)
@groups.memory_option
def lower(
    file: str,
    engine: str,
    folder: Path | None,
    output: Path,
    force: bool,
    no_measure: bool,
    model: ModelChoice,
    **settings: Any,
) -> None:
    """Make the plan that loses least in an engine at the cost of PLAN, and state what is lost.

    Most serving engines cannot drop tokens inside the decoder. They can only be given fewer
    tokens, so that a plan has one cut before layer 0. With --engine embeddings, the command
    searches for the best plan of this kind. With --engine vllm, it searches for the best plan
    that runs in vLLM with tpcal's plugin, which cuts inside the decoder.

    The command needs a profile from 'tpcal calibrate' of the plan's model. It gives the new plan
    the cost of PLAN, in the unit of its budget, and measures both plans on the same samples.
    With --no-measure, it predicts both losses instead. You can interrupt the command at any
    time; the same command continues.

    \b
    Examples:
      tpcal lower plan.yaml --engine embeddings
      tpcal lower plan.yaml --engine embeddings --no-measure -o light.yaml
      tpcal lower org/llava-plan@v1 --engine vllm --model llava-1.5-7b
    """
    from tpcal.views.lowering_view import lowering_view
    from tpcal.workflow import lowering

    refuse_to_overwrite(output, force)
    how = PlanningSettings(measure=not no_measure, command=terminal.command(), **settings)
    with terminal.progress() as report:
        found = lowering.lower(
            file, engine, profile=folder, model=model, settings=how, progress=report
        )
    made = found.save(output)
    terminal.console().print(lowering_view(found, title=str(output)))
    after_plan(made, output)
