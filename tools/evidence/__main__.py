"""The command line: ``python -m tools.evidence MODEL``."""

from __future__ import annotations

from pathlib import Path

import click

from tools.evidence.run import INTERRUPTED, StepFailed, StepStopped, estimate, run
from tools.evidence.steps import Settings
from tpcal.plans.local_paths import file_name
from tpcal.plans.plan_records import MERGES

ROOT = Path(__file__).parents[2]


@click.command()
@click.argument("model")
@click.option("--data", help="Data to calibrate on, as of 'tpcal calibrate'.")
@click.option(
    "--budgets",
    default="0.1,0.22,0.35,0.5",
    show_default=True,
    help="Layer averages of the plans.",
)
@click.option(
    "--merge",
    type=click.Choice(MERGES),
    help="Merge tokens that leave, as of 'tpcal calibrate'; results go into results/MODEL-MERGE.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Samples of the calibration.")
@click.option("--questions", type=click.IntRange(min=1), help="Questions that every plan answers.")
@click.option("--batch-sizes", default="1,8", show_default=True, help="Batches that are timed.")
@click.option("--device", help="Device of the model, such as cuda.")
@click.option("--dtype", help="Precision of the weights, such as bfloat16.")
@click.option("--batch-size", help="Largest number of samples per run of the model.")
@click.option("--memory", help="Largest memory on the device, such as 40GB.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Searches that run at once, and evaluations; each loads the model.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the files to send.  [default: results/MODEL]",
)
@click.option("--dry-run", is_flag=True, help="Say what would run, and what calibration takes.")
def main(
    model: str,
    data: str | None,
    merge: str | None,
    budgets: str,
    samples: int | None,
    questions: int | None,
    batch_sizes: str,
    device: str | None,
    dtype: str | None,
    batch_size: str | None,
    memory: str | None,
    jobs: int,
    results: Path | None,
    dry_run: bool,
) -> None:
    """Measure a MODEL as a whole: its profile, plans at four budgets, answers and times.

    The plans answer unseen questions beside the published schedules and two controls at the same
    budget. The same command continues a run that was stopped. The folder of results holds a few
    hundred kB of text, and no picture or question; send it with the issue form "Results of a
    model".
    """
    name = file_name(model, merge)
    settings = Settings(
        model,
        from_here(results or ROOT / "results" / name),
        Path("tpcal-out") / "evidence" / name,
        tuple(float(budget) for budget in budgets.split(",")),
        data=_options(data=data),
        machine=_options(device=device, dtype=dtype),
        memory=_options(batch_size=batch_size, memory=memory),
        samples=samples,
        questions=questions,
        batch_sizes=batch_sizes,
        merge=merge,
        jobs=jobs,
    )
    try:
        if dry_run:
            estimate(settings)
        else:
            run(settings)
            click.echo(f"{settings.results} is complete.")
    except StepStopped as stopped:
        click.echo(f"Stopped in the step {stopped}. The same command continues.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except StepFailed as failed:
        raise click.ClickException(
            f"The step {failed} has ended with an error; see above. The same command continues."
        ) from None


def from_here(folder: Path) -> Path:
    """The folder relative to the working folder, if it is in it.

    The files name each other, and are sent: they are not to name folders of this machine.
    """
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _options(**values: str | None) -> tuple[str, ...]:
    """The options that were given, as of the commands of tpcal."""
    given = {f"--{name.replace('_', '-')}": value for name, value in values.items()}
    return tuple(part for flag, v in given.items() if v is not None for part in (flag, v))


if __name__ == "__main__":
    main()
