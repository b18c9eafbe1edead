"""The command `tpcal convert`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal import terminal
from tpcal.commands.hints import after_convert
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.options import groups


@click.command(short_help="Write a schedule of another tool as a plan.")
@click.argument("schedule")
@click.option(
    "--layers",
    "n_layers",
    type=click.IntRange(min=1),
    required=True,
    metavar="N",
    help="Number of decoder layers of the model that the schedule is for.",
)
@groups.output_options("converted.yaml")
def convert(schedule: str, n_layers: int, output: Path, force: bool) -> None:
    """Convert a schedule of another tool into a plan file.

    \b
    SCHEDULE has one of these forms:
      layer:method:ratio,…   UniPruneBench; ratio: the share kept of what is left
      layer_list=[…] image_token_ratio_list=[…]   PyramidDrop; shares kept of all;
                             short: layers=[…] keeps=[…], perhaps method=NAME
      K=… R=…                FastV; R is the share pruned

    The methods are fastv, pdrop, divprune, dart, todre, btp, pool and the selectors of
    'tpcal selectors'. A ratio of 0 drops all tokens. A cut is made before the layer that it
    names.

    \b
    Examples:
      tpcal convert 2:fastv:0.5 --layers 32 -o fastv.yaml
      tpcal convert "2:dart:0.5,16:pdrop:0.3" --layers 28
      tpcal convert "layers=[2,6,15] keeps=[300/576,200/576,110/576]
        method=sparsevlm" --layers 32
    """
    from tpcal.plans.plan_file import save_plan
    from tpcal.plans.published.other_tools import schedule as read
    from tpcal.views.plan_view import plan_view

    refuse_to_overwrite(output, force)
    found = read(schedule, n_layers)
    save_plan(found, output)
    terminal.console().print(plan_view(found, title=str(output)))
    after_convert(output)
