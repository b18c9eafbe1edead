"""The command `tpcal doctor`."""

from __future__ import annotations

import json

import click

from tpcal import terminal


@click.command(short_help="Say what is installed here and what works with it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(as_json: bool) -> None:
    """Say which versions are installed, what works with them, and how to install what is missing.

    The command tests a law of pruning on the built-in model with every attention kernel that
    runs plans, which takes up to half a minute. It exits with 0 unless tpcal itself cannot run;
    then it exits with 1.

    \b
    Examples:
      tpcal doctor
      tpcal doctor --json
    """
    from tpcal.views.doctor_view import doctor_data, doctor_view
    from tpcal.workflow.installation import examine, refuse_broken

    with terminal.progress() as report:
        report(0, 0, "Trying plans on the built-in model")
        parts = examine()
    if as_json:
        click.echo(json.dumps(doctor_data(parts), indent=2))
    else:
        terminal.console().print(doctor_view(parts))
    refuse_broken(parts)
