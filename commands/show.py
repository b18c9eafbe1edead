"""The command `tpcal show`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpcal import terminal
from tpcal.commands.outputs import check_outputs, write_picture
from tpcal.options import groups, values
from tpcal.plans.errors import UsageError, listed
from tpcal.plans.plan_names import load_plan
from tpcal.workflow.profiles import is_profile, load_profile


@click.command(short_help="Draw a plan or a profile in the terminal.")
@click.argument("what", metavar="PLAN|PROFILE")
@click.option(
    "--layers",
    "depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of decoder layers that a preset is scaled to.  [default: as published]",
)
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of visual tokens of an image for preset:NAME@BUDGET.  [default: 576]",
)
@click.option(
    "--measure",
    type=click.Choice(["kl", "local", "flips"]),
    default="kl",
    show_default=True,
    help="Measure of a profile: loss (kl), change of the states (local) or changed answers "
    "(flips).",
)
@click.option("--group", help="Show only this group of the samples of a profile.")
@click.option(
    "--threshold",
    type=values.Finite(min=0),
    default=0.01,
    show_default=True,
    metavar="NATS",
    help="Largest loss that counts as safe in a profile.",
)
@groups.picture_options
def show(
    what: str,
    depth: int | None,
    n_tokens: int | None,
    measure: str,
    group: str | None,
    threshold: float,
    svg: Path | None,
    force: bool,
) -> None:
    """Draw the schedule, cost and loss of a plan, or the measurements of a profile.

    \b
    Examples:
      tpcal show plan.yaml
      tpcal show preset:pyramiddrop --layers 28
      tpcal show preset:dart-128@0.22 --layers 32 --tokens 576
      tpcal show tpcal-out --group count
      tpcal show plan.yaml --svg plan.svg
    """
    from tpcal.views.plan_view import plan_view

    check_outputs([svg] if svg else [], force)
    if is_profile(what):
        view = _profile_view(Path(what), measure, group, threshold)
    else:
        view = plan_view(load_plan(what, depth, n_tokens), title=what, n_layers=depth)
    if svg is None:
        terminal.console().print(view)
    else:
        write_picture(svg, view, title=f"tpcal show {what}")


def _profile_view(path: Path, measure: str, group: str | None, threshold: float) -> Any:
    from tpcal.views.profile_view import profile_view

    folder, profile = load_profile(path)
    if group is not None and group not in profile.groups:
        known = listed(profile.groups)
        raise UsageError(f"No group is called {group!r} in {folder}. Known: {known}.")
    return profile_view(
        profile, title=str(folder), measure=measure, group=group, threshold=threshold
    )
