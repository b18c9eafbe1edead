"""`tpcal calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tpcal import options, terminal
from tpcal.calibrate.inputs.choices import DataChoice, ModelChoice
from tpcal.commands.hints import after_calibrate
from tpcal.options import Listed
from tpcal.workflow.settings import OUT, CalibrationSettings


@click.command(short_help="Measure what each layer loses when tokens are dropped.")
@options.model_options
@options.data_options
@click.option(
    "--own-answers",
    is_flag=True,
    help="Measure against the model's own unpruned answers, not the data's.",
)
@click.option(
    "--selectors",
    type=Listed(options.selector),
    metavar="A,B",
    help="Selectors to probe; 'tpcal selectors' lists them.  [default: attention, balanced, "
    "dart, diversity, grid, random]",
)
@click.option(
    "--keeps",
    type=Listed(options.keep),
    metavar="K,K",
    help="Keeps to probe; 0 drops all tokens.  [default: 0.5, 0.25, 0.1, 0.05, 0]",
)
@click.option(
    "--layers",
    type=Listed(options.layer, ranges=True),
    metavar="L,L-L",
    help="Decoder layers to cut before.  [default: all, or 16 of a deeper decoder]",
)
@click.option(
    "--full-grid",
    is_flag=True,
    help="Probe every layer, keep and selector, for twice the work.",
)
@options.batch_size_option(16)
@options.memory_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=OUT,
    show_default=True,
    help="Folder that collects profiles.",
)
def calibrate(
    model: ModelChoice,
    data: DataChoice,
    out: Path,
    **settings: Any,
) -> None:
    """Measure what each decoder layer loses when visual tokens are dropped before it.

    A probe drops tokens once: before one layer, to one keep, by one selector. By default a
    coarse grid of probes comes first; then rounds of further ones where the best plans of
    any budget would cut. That finds plans as good as the full grid does, for half the work.
    --full-grid probes everything; --layers, --keeps or --selectors exactly what they name.

    Writes a profile into --out. Interrupt it at any time: the same command continues.

    \b
    Examples:
      tpcal calibrate
      tpcal calibrate --samples 32 --layers 0-3,6 --keeps 0.5,0.25,0
      tpcal calibrate --model llava-1.5-7b --data questions.jsonl \\
          --samples 64 --device cuda --dtype bfloat16
    """
    from tpcal.views.profile_view import profile_summary
    from tpcal.workflow.calibration import make_profile

    how = CalibrationSettings(command=terminal.command(), **settings)
    with terminal.progress() as report:
        stored = make_profile(model, data, out=out, settings=how, progress=report)
    terminal.console().print(profile_summary(stored.profile, stored.folder))
    after_calibrate(stored.profile, stored.folder, is_default=out == OUT)
    for warning in stored.warnings:
        terminal.warn(warning)
