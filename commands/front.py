"""`tpcal front`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal import terminal
from tpcal.commands.inputs import read_profile


@click.command(short_help="Show what every budget costs in quality.")
@click.argument("folder", metavar="PROFILE", required=False, type=click.Path(path_type=Path))
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL of the searches.  [default: in the profile]",
)
def front(folder: Path | None, storage: str | None) -> None:
    """Show the plans that no other plan beats in both cost and loss.

    They are those that 'tpcal plan' has measured for this profile, for any budget; before the
    first search, the predicted ones. No model is loaded.

    \b
    Examples:
      tpcal front
      tpcal front tpcal-out/embedded-1f2e3d4c5b
    """
    from tpcal.planner.front import front as plans
    from tpcal.planner.predict import Predictor
    from tpcal.planner.storage import open_storage
    from tpcal.views.fronts import front_view

    folder, profile = read_profile(folder)
    points = plans(Predictor(profile), open_storage(storage or folder / "study.journal"))
    terminal.console().print(front_view(points, title=str(folder)))
