"""Options, clock and description of the machine that all benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from tpcal.calibrate.bench.machine import device_name

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
Command = Callable[..., None]


def run_options(command: Command) -> Command:
    """Adds --dtype, --device, --repeats, --threads, --clock and --json."""
    options = [
        click.option(
            "--dtype", type=click.Choice(sorted(DTYPES)), default="bf16", show_default=True
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
        click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True),
        click.option(
            "--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's choice."
        ),
        click.option(
            "--clock",
            type=click.Choice(["wall", "cpu"]),
            default="wall",
            show_default=True,
            help="cpu: processor time, for a machine that others use too; with one thread only.",
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the figures here too.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def timer(clock: str, threads: int | None, device: str) -> Callable[[], float]:
    """The chosen clock, in seconds; sets the number of torch's threads.

    Raises:
        click.UsageError: Processor time is asked for with several threads or another device.
    """
    if clock == "cpu" and (threads != 1 or device != "cpu"):
        raise click.UsageError("--clock cpu needs --threads 1 and --device cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    return time.process_time if clock == "cpu" else time.perf_counter


def hardware(device: str) -> str:
    """The machine and the versions of libraries, in words."""
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    return f"{device_name(torch.device(device))}{threads}, torch {torch.__version__}"
