"""`tpcal certify`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal import options, terminal
from tpcal.commands.inputs import OUT, plan_model_samples, refuse_to_overwrite
from tpcal.options import DataChoice, ModelChoice
from tpcal.planner.published.names import is_preset


@click.command(short_help="Prove how few answers a plan changes.")
@click.argument("file", metavar="PLAN")
@click.option(
    "--max-flips",
    type=options.Finite(min=0, max=1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="P",
    help="Share of answers that may change.",
)
@click.option(
    "--confidence",
    type=options.Finite(min=0, max=1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    metavar="C",
    help="How often such a promise must hold.",
)
@click.option("--each-group", is_flag=True, help="Promise it of every group of samples.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.  [default: PLAN itself]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
@options.model_options
@options.data_options
@options.batch_size_option(32)
@options.answer_length_option(16)
def certify(
    file: str,
    max_flips: float,
    confidence: float,
    each_group: bool,
    output: Path | None,
    force: bool,
    model: ModelChoice,
    data: DataChoice,
    batch_size: int,
    max_new_tokens: int,
) -> None:
    """Prove that a plan changes few answers, and write the proof into the plan.

    Answers every sample with and without the plan, on samples that no search has seen, and
    tests the share of changed answers (exact binomial test). The samples are those of the plan's
    own data that it was not made from, or of --data. Exits with 4 where it cannot be
    proven, and says how many samples that would take. Samples that the plan was made from are
    refused. Of several plans that are tried on the same samples, here or by 'tpcal eval', each
    is tested more strictly than the one before, so that the promise holds for whichever you ship
    (judged.jsonl in tpcal-out and in ~/.local/state/tpcal remembers them).

    \b
    Examples:
      tpcal certify plan.yaml --max-flips 0.05 --confidence 0.95
      tpcal certify plan.yaml --max-flips 0.1 --each-group --samples 2800
    """
    from tpcal.plans.local_paths import moved
    from tpcal.plans.plan_file import save_plan
    from tpcal.views.plan_view import certificate_line

    if output is None and is_preset(file):
        raise click.UsageError("A preset cannot be written to; name a file with --output.")
    refuse_to_overwrite(output or Path(file), force)
    with terminal.progress() as report:
        found, loaded, samples = plan_model_samples(file, model, data, report)
        from tpcal.planner.certificates.binomial import Promise
        from tpcal.planner.certificates.certify import prove
        from tpcal.planner.certificates.judged import Judged

        proven = prove(
            [found],
            Promise(max_flips, confidence, each_group),
            loaded,
            samples,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=report,
            judged=Judged.beside(OUT),
        )
    target = output or Path(file)
    save_plan(moved(proven, Path(file).parent, target.parent), target)
    assert proven.certificate is not None
    terminal.console().print(certificate_line(proven.certificate))
