"""The commands `tpcal presets`, `tpcal selectors` and `tpcal datasets`."""

from __future__ import annotations

import click

from tpcal import terminal
from tpcal.plans.errors import RunFailed


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


@click.command(short_help="List the data sets that have names.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--verify",
    is_flag=True,
    help="Read two samples of each data set from the Hub, and say what matches.",
)
def datasets(names: tuple[str, ...], verify: bool) -> None:
    """List the data sets that --data takes by name.

    The data sets are read from the Hugging Face Hub as lmms-eval reads them: the same splits,
    prompts and metrics. --data textvqa:64,chartqa:64 mixes several, each as a group of its own.
    'lite' is a mix of 15 subsets of LMMs-Eval-Lite in equal parts, and the default for models that
    are not built in. 'scenes' are the drawings of the built-in models.

    Without the Hub, copy the data sets to a folder with 'hf download', and set TPCAL_DATASETS to
    that folder. The licences are those of the data sets; check them before you use the data.

    With --verify, the command exits with 1 if a data set is not as the list says.

    \b
    Examples:
      tpcal datasets
      tpcal datasets textvqa chartqa --verify
      tpcal calibrate --model llava-1.5-7b --data textvqa:64,chartqa:64
    """
    from tpcal.calibrate.inputs.datasets.catalog import catalog
    from tpcal.calibrate.inputs.datasets.mixture import parse_mixture
    from tpcal.views.datasets_view import datasets_table, verified_line

    chosen = parse_mixture(",".join(names)).datasets if names else tuple(catalog().values())
    if not verify:
        terminal.console().print(datasets_table(chosen))
        return
    from tpcal.calibrate.inputs.datasets.hub_check import verified

    wrong = []
    for dataset in chosen:
        found = verified(dataset)
        terminal.console().print(verified_line(found), soft_wrap=True)
        wrong += [] if found.matches else [dataset.name]
    if wrong:
        raise RunFailed(
            f"{len(wrong)} of {len(chosen)} data sets are not as listed: {', '.join(wrong)}. "
            "Report it with the lines above."
        )
