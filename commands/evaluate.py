"""The command `tpcal eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tpcal import terminal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.outputs import check_folder, check_outputs, write_figures
from tpcal.options import groups, values
from tpcal.workflow.step_settings import OUT, EvaluationSettings


def control(word: str) -> str:
    """Reads the name of a control; raises ValueError for other text."""
    from tpcal.calibrate.evaluation.controls import CONTROLS

    if word not in CONTROLS:
        raise ValueError(f"a control must be one of {', '.join(CONTROLS)}")
    return word


def _check_controls(of: Sequence[str], controls: Sequence[str], files: Sequence[str]) -> None:
    """Raises click.UsageError if --control-of does not fit --control and --plan."""
    if of and not controls:
        raise click.UsageError("--control-of must come with --control; got it alone.")
    unknown = next((name for name in of if name not in files), None)
    if unknown is not None:
        raise click.UsageError(
            f"--control-of must name a --plan, as it stands there; got {unknown}."
        )


@click.command(name="eval", short_help="Compare accuracy with and without plans.")
@click.option(
    "--plan",
    "files",
    metavar="PLAN",
    multiple=True,
    help="Plan to evaluate: a file, folder, preset:NAME, preset:NAME@BUDGET, or a repository on "
    "the Hub (org/name@revision). May be given several times. Without it, only the unpruned model "
    "is evaluated.",
)
@click.option(
    "--control",
    "controls",
    type=values.Listed(control),
    default=(),
    metavar="A,B",
    help="Controls of the same cost to compare each plan with: random, grid, downsized. Each "
    "takes as long as a plan.  [default: none]",
)
@click.option(
    "--control-of",
    "controls_of",
    metavar="PLAN",
    multiple=True,
    help="Plan that is compared with controls. May be given several times.  [default: every plan]",
)
@groups.model_options
@groups.data_options
@click.option("--allow-seen", is_flag=True, help="Accept samples that a plan was made from.")
@groups.batch_size_option(32)
@groups.memory_option
@groups.answer_length_option()
@click.option(
    "--fresh",
    is_flag=True,
    help="Answer anew; what --out holds of these plans and controls is deleted.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=OUT,
    show_default=True,
    help="Folder that the answers are kept in.",
)
@click.option(
    "--no-keep",
    is_flag=True,
    help="Keep no answers. An interrupted run then starts again.",
)
@groups.figures_option
def evaluate(
    files: tuple[str, ...],
    model: ModelChoice,
    data: DataChoice,
    out: Path,
    no_keep: bool,
    outputs: tuple[Path, ...],
    force: bool,
    **settings: Any,
) -> None:
    """Compare the accuracy of answers with and without plans.

    Several plans are compared on the same samples, which the unpruned model answers once. A
    control shows what the plan's choice of tokens is worth, at the measured cost of the plan:

    \b
      random      one cut before the first layer, drawn anew for every batch
      grid        one cut before the first layer, evenly spread
      downsized   smaller images, which become fewer tokens

    Answers are scored by the metrics of their data sets, or by --metric. If the data has no
    answers, the command measures how often the answer is that of the unpruned model.
    Differences are tested in pairs by McNemar's exact test, or by the sign-flip test if a
    score is between 0 and 1, corrected by Holm's method: each plan file against the unpruned
    model, its controls and every other plan. Presets are tested against each other only if
    no plan file is given.

    The questions come from the data of the plan, without those that the plan was made from,
    or from --data. Samples that a plan was made from are refused. The built-in drawings are
    for the built-in models, which calibrate on others than these; any other model is asked
    the mix 'lite' that 'tpcal datasets' lists.

    Answers are kept as text in tpcal-out/eval-…. You can interrupt the command at any time;
    the same command continues. A further plan needs only its own answers. --out names another
    folder, and --no-keep keeps nothing.

    \b
    Examples:
      tpcal eval --plan plan.yaml
      tpcal eval --plan preset:fastv --samples 200
      tpcal eval --plan plan.yaml --plan preset:dart-128@0.22 --control grid \\
          --control-of plan.yaml
      tpcal eval --plan plan.yaml --data questions.jsonl --group-column kind
      tpcal eval --plan plan.yaml --control downsized -o eval.md -o eval.json
    """
    from tpcal.plans.formats import count
    from tpcal.views.evaluation_view import evaluation_markdown, evaluation_view, judged_line
    from tpcal.workflow import evaluation

    how = EvaluationSettings(out=None if no_keep else out, **settings)
    if how.controls and not files:
        raise click.UsageError("--control must come with --plan; got it alone.")
    _check_controls(how.controls_of, how.controls, files)
    check_outputs(outputs, force)
    if how.out is not None:
        check_folder(how.out, "Name another folder with --out, or add --no-keep")
    with terminal.progress() as report:
        done = evaluation.evaluate(files, model=model, data=data, settings=how, progress=report)
    results, samples = done.results, done.samples
    names = files[0] if len(files) == 1 else f"{len(files)} plans" if files else "unpruned"
    title = f"{names} on {samples.name}, {count(len(samples), 'sample')}"
    if done.n_seen:
        title += f" ({done.n_seen} of {len(samples)} samples seen by a plan)"
        terminal.warn(
            f"{done.n_seen} of {len(samples)} samples are among those that a plan was made from, "
            "so its figures are too good."
        )
    terminal.console().print(evaluation_view(results, title=title))
    if files:
        terminal.console().print(judged_line(done.n_judged))
    write_figures(outputs, results.to_json(), evaluation_markdown(results, title=title))
