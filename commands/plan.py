"""`tpcal plan`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpcal import options, terminal
from tpcal.commands.inputs import read_profile, refuse_to_overwrite
from tpcal.options import DataChoice, ModelChoice
from tpcal.plans.errors import FitError, UsageError

if TYPE_CHECKING:
    from tpcal.calibrate.measure import Measurer
    from tpcal.calibrate.models import Loaded
    from tpcal.calibrate.profile import Profile


@click.command(short_help="Choose the cuts for a budget and write them as a plan.")
@options.budget_options
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from.  [default: the newest in tpcal-out]",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("plan.yaml"),
    show_default=True,
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is not a plan.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Plans to measure.",
)
@click.option("--timeout", type=options.Finite(min=0), metavar="S", help="Stop after S seconds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--max-cuts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Most cuts in a plan.",
)
@click.option(
    "--max-loss",
    type=options.Finite(min=0),
    metavar="NATS",
    help="Exit with 4 where the worst group loses more; nothing is written.",
)
@click.option("--no-measure", is_flag=True, help="Predict only; the model is not loaded.")
@click.option("--data", metavar="DATA", help="Where the profile's samples are now, if they moved.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to measure on.  [default: twice the profile's]",
)
@options.model_options
@options.batch_size_option(16)
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL that keeps the search.  [default: in the profile]",
)
def plan(
    folder: Path | None,
    output: Path,
    force: bool,
    timeout: float | None,
    no_measure: bool,
    data: str | None,
    samples: int | None,
    model: ModelChoice,
    batch_size: int,
    storage: str | None,
    trials: int,
    **limits: Any,
) -> None:
    """Choose the cuts that lose least, at the cost you name.

    Needs a profile from 'tpcal calibrate'. Candidates are measured by running the model on
    samples drawn like the profile's, the best ones on further samples too; what counts is half
    the loss of the worst group and half the mean. With --no-measure, the profile's prediction
    decides. Interrupt it at any time: the same command continues.

    \b
    Examples:
      tpcal plan --budget 0.22
      tpcal plan --budget 0.1 --no-measure -o light.yaml
      tpcal plan --budget-kv 30% --max-loss 0.05 --trials 200 --timeout 600
    """
    from tpcal.views.plans import next_steps, plan_view

    refuse_to_overwrite(output, force)
    folder, profile = read_profile(folder)
    with terminal.progress() as report:
        report(0, 0, "Planning")
        measurer = finals = None
        if not no_measure:
            measurer, finals = _measurers(profile, folder, model, data, samples, batch_size)
        from tpcal.planner.search import search

        found = search(
            profile,
            measurer=measurer,
            finals=finals,
            n_trials=trials,
            timeout=timeout,
            storage=storage or folder / "study.journal",
            command=terminal.command(),
            progress=report,
            **limits,
        ).plan
    from tpcal.plans.schema import save_plan

    save_plan(found, output)
    terminal.console().print(plan_view(found, title=str(output)))
    terminal.console().print(next_steps(str(output)))


def _measurers(
    profile: Profile,
    folder: Path,
    model: ModelChoice,
    data: str | None,
    n_samples: int | None,
    batch_size: int,
) -> tuple[Measurer, Measurer | None]:
    """For the search, samples drawn as the profile's were, the same ones first; further ones for
    its finalists. The model is loaded when the first plan is measured."""
    from tpcal.calibrate.measure import Measurer, n_of_finals, n_to_measure

    @cache
    def load() -> Loaded:
        made_for = profile.model
        loaded = model.or_else(made_for.name, made_for.revision).load()
        if loaded.identity.fingerprint != made_for.fingerprint:
            problem = f"made for {made_for.name}, whose structure differs from {loaded.name}'s."
            raise FitError(str(folder), [problem])
        return loaded

    choice = DataChoice.restored(profile.provenance.get("samples", {}))
    choice = replace(choice, data=data or choice.data)
    samples = choice.load("calibration")
    if samples.fingerprint != profile.provenance["data"]["fingerprint"]:
        raise UsageError(
            f"{folder} was measured on other samples than {samples.name} gives now. Name the data "
            "set with --data, calibrate again, or plan with --no-measure."
        )
    wanted = n_samples or n_to_measure(len(samples), samples.n_rows)
    total = wanted + n_of_finals(wanted, samples.n_rows)
    if total != len(samples):
        samples = replace(choice, samples=total).load("calibration")
    first, further = samples.part(0, wanted), samples.part(wanted, len(samples))
    finals = Measurer(load, further, batch_size=batch_size)
    return Measurer(load, first, batch_size=batch_size), (
        finals if further.groups == first.groups else None
    )
