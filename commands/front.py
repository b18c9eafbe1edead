"""The command `tpcal front`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tpcal import terminal
from tpcal.commands.outputs import check_outputs, write_picture
from tpcal.options import groups
from tpcal.plans.extras import needs
from tpcal.workflow.profiles import load_profile


@click.command(short_help="Show the trade-off between cost and loss.")
@click.argument("folder", metavar="[PROFILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL of the searches.  [default: a file in the profile]",
)
@groups.picture_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a chart.")
@needs("plan")
def front(
    folder: Path | None, storage: str | None, svg: Path | None, force: bool, as_json: bool
) -> None:
    """Show the plans that no other plan beats in both cost and loss.

    The plans are those that 'tpcal plan' has measured for this profile, for any budget.
    Before the first search, predicted plans are shown. Published schedules are named. No
    model is loaded.

    \b
    Examples:
      tpcal front
      tpcal front tpcal-out/embedded-1f2e3d4c5b --svg front.svg
    """
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.front import front as plans
    from tpcal.planner.search.front import named
    from tpcal.views.front_view import front_data, front_view

    if as_json and svg:
        raise click.UsageError("--json prints the front, so --svg cannot be given with it.")
    check_outputs([svg] if svg else [], force)
    stored = load_profile(folder)
    predictor = Predictor(stored.profile)
    points = plans(predictor, storage or stored.study)
    names = named(predictor, points)
    if as_json:
        click.echo(json.dumps(front_data(points, names), indent=2))
        return
    view = front_view(points, str(stored.folder), predictor.objective, names)
    if svg is None:
        terminal.console().print(view)
        return
    write_picture(svg, view, title=f"tpcal front {stored.folder.name}")
