"""Decorators that add options which several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from tpcal.calibrate.evaluation.metrics import METRICS
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.sample_size import (
    ANSWER_TOKENS,
    DEFAULT_N,
    LEAST_OF_GROUP,
    N_CERTIFY,
    N_VERIFY,
)
from tpcal.options.values import Finite, n_bytes, result_files, share
from tpcal.plans.engines import ENGINES
from tpcal.plans.errors import UsageError
from tpcal.workflow.step_settings import PlanLimits

Command = Callable[..., None]


def model_options(command: Command) -> Command:
    """Adds the options that choose a model; the command receives ``model``."""
    options = [
        click.option(
            "--model",
            "name",
            metavar="NAME",
            help="Model to run: an alias (llava-1.5-7b), a Hub id (org/name@revision), a local "
            "folder, or 'embedded' or 'smol' for a built-in model.",
        ),
        click.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub."),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="DEV",
            help="Device to run on, such as cpu, cuda or cuda:1.",
        ),
        click.option(
            "--dtype",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            help="Precision of the weights. 'auto' is the one that a plan was measured in where "
            "answers are judged; otherwise the model's own on a GPU, and float32 on a CPU.",
        ),
        click.option(
            "--offload",
            is_flag=True,
            help="Keep weights that do not fit on the device in CPU memory or on disk; slow.",
        ),
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Run Python code that comes with the model. --model must name the model.",
        ),
    ]
    return _gather(ModelChoice, "model", options, command)


def data_options(command: Command) -> Command:
    """Adds the options that choose samples; the command receives ``data``."""
    options = [
        click.option(
            "--data",
            metavar="DATA",
            help="Data: names that 'tpcal datasets' lists, each with a number of samples if you "
            "like (textvqa:64,chartqa:64), 'lite' for a mix of 15; a Hub id, a folder, a "
            ".parquet, .csv, .json or .jsonl file; or 'scenes' for the built-in drawings.  "
            "[default: the plan's data, or 'scenes' for a built-in model and 'lite' for others]",
        ),
        click.option(
            "--split",
            metavar="NAME",
            help="Split to draw from: 'calibration', 'eval', or a split of the data set.",
        ),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            metavar="N",
            help="Number of samples to draw.  [default: for calibration "
            f"{DEFAULT_N['calibration']}, at least {LEAST_OF_GROUP} of each group; for 'tpcal "
            f"verify' {N_VERIFY}; otherwise {DEFAULT_N['eval']}]",
        ),
        click.option(
            "--seed",
            type=int,
            metavar="N",
            help="Seed of the sampling.  [default: the seed of the plan, or 0]",
        ),
    ]
    options += [
        click.option(f"--{name}-column", metavar="NAME", help=f"Column that holds the {what}.")
        for name, what in [
            ("image", "image or images"),
            ("question", "question"),
            ("answer", "answer; optional"),
            ("group", "group of a sample; optional"),
            ("choices", "choices, or A,B,C,D with one each; 'none' reads none"),
            ("system", "system prompt; optional"),
        ]
    ]
    options.append(
        click.option(
            "--skip-bad",
            is_flag=True,
            help="Skip rows that cannot be read, and list them.",
        )
    )
    options.append(
        click.option(
            "--metric",
            type=click.Choice(list(METRICS)),
            metavar="NAME",
            help=f"Metric that scores answers: {', '.join(METRICS)}.  [default: that of data sets "
            "by name, or match]",
        )
    )
    return _gather(DataChoice, "data", options, command)


def budget_options(command: Command) -> Command:
    """Adds the options of the cost of a plan; the command receives ``budget`` or None."""
    options = {
        "budget": (share, "B", "Budget as layer-average keep: 0.22, 22%, 128/576, rate=0.78."),
        "budget_flops": (share, "B", "Budget as a share of the unpruned prefill's FLOPs."),
        "budget_kv": (share, "B", "Budget as a share of the unpruned KV bytes."),
        "budget_ms": (None, "MS", "Budget in ms of the decoder's prefill on this hardware."),
    }

    @functools.wraps(command)
    def parsed(**values: Any) -> None:
        given = {name: v for name in options if (v := values.pop(name)) is not None}
        flags = [f"--{name.replace('_', '-')}" for name in options]
        if not given:
            command(budget=None, **values)
            return
        if len(given) > 1:
            raise click.UsageError(f"Only one of {', '.join(flags)} can be given.")
        from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget

        ((name, target),) = given.items()
        kind = name.removeprefix("budget").removeprefix("_") or LAYER_AVERAGE
        command(budget=Budget(target, kind), **values)

    result: Command = parsed
    for name, (callback, unit, text) in reversed(options.items()):
        flag, limits = f"--{name.replace('_', '-')}", None if callback else Finite(min=0)
        option = click.option(flag, callback=callback, type=limits, metavar=unit, help=text)
        result = option(result)
    return result


def limit_options(command: Command) -> Command:
    """Adds the options of the loss of a plan; the command receives ``limits``."""
    options = [
        click.option(
            "--max-loss",
            type=Finite(min=0),
            metavar="NATS",
            help="Largest measured loss of the worst group.",
        ),
        click.option(
            "--max-flips",
            type=Finite(min=0, max=1),
            metavar="P",
            help="Largest share of answers that may change, over all samples. It is measured, and "
            "with --confidence also proven.",
        ),
        click.option(
            "--each-group",
            is_flag=True,
            help="Apply --max-flips to every group instead of to all samples together.",
        ),
        click.option(
            "--confidence",
            type=Finite(min=0, max=1, min_open=True, max_open=True),
            metavar="C",
            help="Prove --max-flips with this confidence, on samples that the search never saw.",
        ),
        click.option(
            "--certify-samples",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Number of samples for the proof.  [default: {N_CERTIFY}]",
        ),
    ]
    return _gather(PlanLimits, "limits", options, command)


def output_options(default: str) -> Callable[[Command], Command]:
    """Adds --output and --force to a command that writes a plan."""

    def add(command: Command) -> Command:
        output = click.option(
            "--output",
            "-o",
            type=click.Path(path_type=Path, dir_okay=False),
            default=Path(default),
            show_default=True,
            help="File that the plan is written to.",
        )
        force = click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
        return output(force(command))

    return add


def trials_option(said: str) -> Callable[[Command], Command]:
    """Adds the number of plans to measure; the help says ``said`` of it."""
    return click.option(
        "--trials",
        "n_trials",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Number of plans to measure.{said}",
    )


def search_options(command: Command) -> Command:
    """Adds the options of a search for a plan, whose names are those of `PlanningSettings`."""
    options = [
        click.option(
            "--timeout", type=Finite(min=0), metavar="S", help="Stop the search after S seconds."
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search."),
        click.option(
            "--max-cuts",
            type=click.IntRange(min=1),
            default=4,
            show_default=True,
            metavar="N",
            help="Largest number of cuts in a plan.",
        ),
        click.option("--no-measure", is_flag=True, help="Only predict losses, without the model."),
        click.option(
            "--data", metavar="DATA", help="Data of the profile's samples, if it has moved."
        ),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            metavar="N",
            help="Number of samples to compare plans on.  [default: that of the profile]",
        ),
        click.option(
            "--storage",
            metavar="URL",
            help="Optuna journal file or database URL of the search.  [default: a file in the "
            "profile]",
        ),
    ]
    for add in reversed(options):
        command = add(command)
    return command


def engine_option(text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Adds --engine, the name of a serving engine."""
    return click.option("--engine", type=click.Choice(list(ENGINES)), required=required, help=text)


def picture_options(command: Command) -> Command:
    """Adds --svg and --force to a command that draws; the command receives ``svg`` or None."""
    svg = click.option(
        "--svg",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write an SVG picture to FILE instead of drawing in the terminal.",
    )
    force = click.option("--force", is_flag=True, help="Overwrite a file that tpcal did not make.")
    return svg(force(command))


def figures_option(command: Command) -> Command:
    """Adds --output and --force for results; the command receives ``outputs``, files by suffix."""
    files = click.option(
        "--output",
        "-o",
        "outputs",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        callback=result_files,
        metavar="FILE",
        help="Also write the results to FILE.json or FILE.md. May be given several times.",
    )
    force = click.option("--force", is_flag=True, help="Overwrite files that tpcal did not make.")
    return files(force(command))


def batch_size_option(default: int) -> Callable[[Command], Command]:
    """Adds --batch-size with this default."""
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help="Samples per run of the model.",
    )


def memory_option(command: Command) -> Command:
    """Adds --memory; the command receives bytes, or None if the option is left out."""
    option = click.option(
        "--memory",
        callback=n_bytes,
        metavar="SIZE",
        help="Largest memory on the device, including the weights, such as 8GB. Batches shrink to "
        "fit.  [default: the free memory]",
    )
    return option(command)


def answer_length_option(default: int | None = None) -> Callable[[Command], Command]:
    """Adds --max-new-tokens with this default; None stands for what the samples need."""
    text = "Length limit of an answer in tokens."
    if default is None:
        text += f"  [default: {ANSWER_TOKENS}; up to 128 for data sets by name]"
    return click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="N",
        help=text,
    )


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Raises click.UsageError, which names the command's help, for a UsageError of the library."""
    try:
        yield
    except UsageError as error:
        raise click.UsageError(str(error)) from None


def _gather(
    record: type, name: str, options: Sequence[Callable[[Command], Command]], command: Command
) -> Command:
    """Adds the options to the command, which receives their values as one ``record``."""

    @functools.wraps(command)
    def parsed(**values: Any) -> None:
        own = {f.name: values.pop(f.name) for f in fields(record) if f.name in values}
        with wrong_usage():
            made = record(**own)
        command(**{name: made}, **values)

    result: Command = parsed
    for option in reversed(options):
        result = option(result)
    return result
