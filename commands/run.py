"""The command `tpcal run`."""

from __future__ import annotations

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.options import groups
from tpcal.workflow.inputs import plan_and_model

Arguments = tuple[str, ...]


@click.command(short_help="Answer a question about images with a plan.")
@click.argument("question")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="Image file. May be given several times.",
)
@click.option(
    "--plan",
    "file",
    metavar="PLAN",
    help="Plan to run with: a file, folder, preset:NAME or org/name.",
)
@groups.model_options
@groups.answer_length_option(64)
def run(
    question: str, images: Arguments, file: str | None, model: ModelChoice, max_new_tokens: int
) -> None:
    """Answer one question about one or more images, and print what the plan saved.

    \b
    Examples:
      tpcal run --plan plan.yaml --image cat.jpg "What is this?"
      tpcal run --image a.png --image b.png "What is different?"
    """
    from tpcal.views.run_view import answer_view

    with terminal.progress() as report:
        found, loaded = plan_and_model(file, model, report)
        from tpcal.calibrate.evaluation.image_answer import answer

        report(0, 0, "Answering")
        said = answer(loaded, question, images, found, max_new_tokens=max_new_tokens)
    terminal.console().print(answer_view(said))
