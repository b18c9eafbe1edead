"""The commands `tpcal presets` and `tpcal selectors`."""

from __future__ import annotations

import click

from tpcal import terminal


@click.command(short_help="List the published schedules.")
def presets() -> None:
    """List the published schedules that ship with tpcal.

    \b
    Example:
      tpcal presets
      tpcal show preset:fastv
    """
    from tpcal.plans.plan_file import load_preset
    from tpcal.plans.plan_file import presets as names
    from tpcal.views.lists import preset_table

    terminal.console().print(preset_table({name: load_preset(name) for name in names()}))


@click.command(short_help="List the selectors and their parameters.")
def selectors() -> None:
    """List the selectors, which choose the tokens that stay, with their parameters.

    \b
    Example:
      tpcal selectors
    """
    from tpcal.plans.selectors import names
    from tpcal.views.lists import selector_table

    terminal.console().print(selector_table(names()))
