"""The command `tpcal certify`."""

from __future__ import annotations

from pathlib import Path

import click

from tpcal import terminal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.commands.outputs import refuse_to_overwrite
from tpcal.options import groups, values
from tpcal.planner.certificates.binomial import Promise
from tpcal.plans.plan_names import is_preset
from tpcal.workflow.step_settings import CertificationSettings


@click.command(short_help="Prove how few answers a plan changes.")
@click.argument("file", metavar="PLAN")
@click.option(
    "--max-flips",
    type=values.Finite(min=0, max=1, min_open=True, max_open=True),
    default=Promise.max_flips,
    show_default=True,
    metavar="P",
    help="Largest share of answers that may change.",
)
@click.option(
    "--confidence",
    type=values.Finite(min=0, max=1, min_open=True, max_open=True),
    default=Promise.confidence,
    show_default=True,
    metavar="C",
    help="Confidence of the proof.",
)
@click.option("--each-group", is_flag=True, help="Prove it for every group of samples.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File that the plan with its proof is written to.  [default: PLAN]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
@groups.model_options
@groups.data_options
@groups.batch_size_option(32)
@groups.memory_option
@groups.answer_length_option()
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
    memory: int | None,
    max_new_tokens: int | None,
) -> None:
    """Prove that a plan changes few answers, and write the proof into the plan.

    The command answers samples that no search has seen with and without the plan, and tests
    the share of changed answers by an exact binomial test. The samples come from the data of
    the plan, without those that the plan was made from, or from --data. Samples that the
    plan was made from are refused. If the proof fails, the command exits with 4 and states
    how many samples are needed.

    If several plans are tried on the same samples, by this command or by 'tpcal eval', each
    one is tested more strictly than the one before. The confidence therefore holds for any
    plan that you choose. The file judged.jsonl in tpcal-out and in ~/.local/state/tpcal
    records the plans that were tried.

    \b
    Examples:
      tpcal certify plan.yaml --max-flips 0.05 --confidence 0.95
      tpcal certify plan.yaml --max-flips 0.1 --each-group --samples 2800
    """
    from rich.text import Text

    from tpcal.plans.formats import certificate_text
    from tpcal.workflow import certification

    if output is None and (is_preset(file) or not Path(file).is_file()):
        raise click.UsageError(
            f"The certified plan must be written to a file, and {file} is none; name one with "
            "--output."
        )
    target = output or Path(file)
    refuse_to_overwrite(target, force)
    before = None if output else target.read_bytes()
    promise = Promise(max_flips, confidence, each_group)
    how = CertificationSettings(batch_size, memory, max_new_tokens)
    with terminal.progress() as report:
        proven = certification.certify(
            file, promise, model=model, data=data, settings=how, progress=report
        )
    if before is not None and target.read_bytes() != before:
        terminal.warn(f"{target} has changed meanwhile, so the certified plan is in another file.")
        target = target.with_name(f"{target.stem}.certified{target.suffix}")
    proven.save(target)
    terminal.console().print(f"Written to {target}.", highlight=False, markup=False)
    terminal.console().print(Text(certificate_text(proven.certificate)))
