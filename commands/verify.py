"""The command `tpcal verify`."""

from __future__ import annotations

import json

import click

from tpcal import terminal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.options import groups


@click.command(short_help="Check that a plan still loses what it states.")
@click.argument("file", metavar="PLAN")
@groups.model_options
@groups.data_options
@groups.batch_size_option(16)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def verify(
    file: str, model: ModelChoice, data: DataChoice, batch_size: int, as_json: bool
) -> None:
    """Measure the loss of a plan on a few new samples and compare it with what the plan states.

    This is a quick gate before a plan is served with another version of a library, on another
    machine, or after it was fetched. The command draws 50 samples (or --samples) that neither
    the search nor the certificate of the plan has seen, from the data of the plan or from
    --data. It exits with 4 if the plan loses over 0.01 nats more than it states, over all
    samples or in a group of at least 8. The tests are one-sided, at a level of 5% together
    (Holm's method). A plan that passes may still be worse by less than so few samples can show;
    'tpcal eval' and 'tpcal certify' take more of them.

    \b
    Examples:
      tpcal verify plan.yaml
      tpcal verify org/llava-plan@v1 --model llava-1.5-7b --data questions.jsonl
      tpcal verify plan.yaml --samples 200 --json
    """
    from tpcal.views.verification_view import verification_view
    from tpcal.workflow import verification

    with terminal.progress() as report:
        found = verification.verify(
            file, model=model, data=data, batch_size=batch_size, progress=report
        )
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        terminal.console().print(verification_view(found))
    found.check()
