"""`tpcal eval`."""

from __future__ import annotations

import click

from tpcal import options, terminal
from tpcal.commands.inputs import both_answers
from tpcal.options import DataChoice, ModelChoice


@click.command(name="eval", short_help="Accuracy with and without a plan, per group.")
@click.option(
    "--plan",
    "file",
    metavar="PLAN",
    help="Plan file or preset:NAME; without it, the unpruned model only.",
)
@options.model_options
@options.data_options
@options.batch_size_option(32)
@options.answer_length_option(16)
def evaluate(
    file: str | None, model: ModelChoice, data: DataChoice, batch_size: int, max_new_tokens: int
) -> None:
    """Compare the answers with the right ones, with and without a plan.

    The built-in questions used here are none that calibration has seen.

    \b
    Examples:
      tpcal eval --plan plan.yaml
      tpcal eval --plan preset:fastv --samples 200
      tpcal eval --plan plan.yaml --data questions.jsonl --group-column kind
    """
    from tpcal.views.evaluations import evaluation_view

    _, samples, evaluation = both_answers(file, model, data, batch_size, max_new_tokens)
    title = f"{file or 'unpruned'} on {samples.name}"
    terminal.console().print(evaluation_view(evaluation, title=title))
