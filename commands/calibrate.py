"""The command `tpcal calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpcal import terminal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.hints import after_calibrate
from tpcal.options import groups, values
from tpcal.plans.plan_records import MERGES, SCOPES
from tpcal.workflow.step_settings import OUT, CalibrationSettings


@click.command(short_help="Measure the loss of dropping tokens before each layer.")
@groups.model_options
@groups.data_options
@click.option(
    "--own-answers",
    is_flag=True,
    help="Measure on the model's own unpruned answers instead of those of the data.",
)
@click.option(
    "--selectors",
    type=values.Listed(values.selector),
    metavar="A,B",
    help="Selectors to probe. 'tpcal selectors' lists them.  [default: attention, balanced, "
    "cdpruner, coverage, dart, diversity, grid, random]",
)
@click.option(
    "--keeps",
    type=values.Listed(values.keep),
    metavar="K,K",
    help="Keeps to probe. A keep of 0 drops all tokens.  [default: 0.5, 0.25, 0.1, 0.05, 0]",
)
@click.option(
    "--layers",
    type=values.Listed(values.layer, ranges=True),
    metavar="L,L-L",
    help="Decoder layers to probe cuts before.  [default: all, or 16 of a deeper decoder]",
)
@click.option(
    "--full-grid",
    is_flag=True,
    help="Probe every combination of layer, keep and selector, which takes twice the work.",
)
@click.option(
    "--scope",
    type=click.Choice(SCOPES),
    default="image",
    show_default=True,
    help="What cuts choose from: the tokens of each image, or all images of a prompt together. "
    "Plans made of the profile have the same scope.",
)
@click.option(
    "--merge",
    type=click.Choice(["none", *MERGES]),
    default="none",
    show_default=True,
    callback=values.unless_none,
    help="Merge each token that leaves into the kept token that is most alike, instead of "
    "dropping it. mean: the kept token's state becomes the mean. proportional: attention also "
    "counts it as often as it stands for others; it loses least, and vLLM cannot run it. Plans "
    "made of the profile do the same.",
)
@groups.batch_size_option(16)
@groups.memory_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=OUT,
    show_default=True,
    help="Folder that profiles are written to.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only load model and samples, and print data sets, groups, memory and time.",
)
def calibrate(
    model: ModelChoice,
    data: DataChoice,
    out: Path,
    dry_run: bool,
    **settings: Any,
) -> None:
    """Measure how much is lost when visual tokens are dropped before each decoder layer.

    A probe drops tokens once: before one layer, to one keep, by one selector. By default, a
    coarse grid is probed first. Further rounds probe the cuts that good plans of any budget
    make. The plans found this way are as good as those of the full grid, for half the work.
    --full-grid probes all combinations. With --layers, --keeps or --selectors, exactly the
    named ones are probed.

    The questions come from --data. A model that is not built in is asked the mix 'lite' of 15
    data sets of the field, from the Hugging Face Hub; 'tpcal datasets' lists more.

    The command writes a profile into --out. You can interrupt it at any time; the same
    command continues.

    \b
    Examples:
      tpcal calibrate
      tpcal calibrate --samples 32 --layers 0-3,6 --keeps 0.5,0.25,0
      tpcal calibrate --model llava-1.5-7b --dry-run
      tpcal calibrate --model llava-1.5-7b --device cuda --dtype bfloat16
      tpcal calibrate --model llava-1.5-7b --data textvqa:64,chartqa:64
      tpcal calibrate --model llava-1.5-7b --data questions.jsonl --samples 64
    """
    from tpcal.views.profile_view import profile_summary
    from tpcal.workflow.calibration import forecast, make_profile

    how = CalibrationSettings(command=terminal.command(), **settings)
    if dry_run:
        from tpcal.views.forecast_view import forecast_view

        with terminal.progress() as report:
            found = forecast(model, data, settings=how, progress=report)
        terminal.console().print(forecast_view(found))
        return
    with terminal.progress() as report:
        stored = make_profile(model, data, out=out, settings=how, progress=report)
    terminal.console().print(profile_summary(stored.profile, stored.folder))
    after_calibrate(stored.profile, stored.folder, is_default=out == OUT)
    for warning in stored.warnings:
        terminal.warn(warning)
