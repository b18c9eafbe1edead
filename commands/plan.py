"""`tpcal plan`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tpcal import options, terminal
from tpcal.commands.hints import after_front, after_plan
from tpcal.commands.inputs import read_profile, refuse_to_overwrite
from tpcal.commands.session import PlanningSession
from tpcal.options import LimitChoice, ModelChoice

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.prediction.budget import Budget
    from tpcal.planner.search.whole_front import KnownPlan
    from tpcal.plans.schema import Plan

N_CERTIFY = 700
MOST_PROVEN = 8
"""Plans that are tried on the samples of a proof."""


@click.command(short_help="Choose the cuts for a budget, or the cheapest within a loss.")
@click.argument("given", metavar="[PROFILE]", required=False, type=click.Path(path_type=Path))
@options.budget_options
@options.limit_options
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=options.weight,
    metavar="GROUP=W",
    help="What a group's loss counts beside the others'; may be repeated.  [default: 1]",
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from, as PROFILE.  [default: the newest in tpcal-out]",
)
@options.output_options("plan.yaml")
@click.option(
    "--trials",
    "n_trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Plans to measure.  [default: 100; of the whole front 300]",
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
@click.option("--no-measure", is_flag=True, help="Predict only; the model is not loaded.")
@click.option("--data", metavar="DATA", help="Where the profile's samples are now, if they moved.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples to compare plans on.  [default: as many as the profile has]",
)
@options.model_options
@options.batch_size_option(16)
@options.memory_option
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL that keeps the search.  [default: in the profile]",
)
def plan(
    given: Path | None,
    folder: Path | None,
    output: Path,
    force: bool,
    budget: Budget | None,
    limits: LimitChoice,
    no_measure: bool,
    data: str | None,
    samples: int | None,
    model: ModelChoice,
    batch_size: int,
    memory: int | None,
    storage: str | None,
    n_trials: int | None,
    **search: Any,
) -> None:
    """Choose the cuts that lose least at the cost you name, or cost least at the loss you name.

    Needs a profile from 'tpcal calibrate'. Candidates are measured by running the model on
    samples drawn like the profile's, the best ones on further samples too; what counts is half
    the loss of the worst group and half the mean. With --no-measure, the profile's prediction
    decides. Interrupt it at any time: the same command continues.

    With a budget, --max-loss and --max-flips refuse a plan that loses more. Without one, they
    ask for the cheapest plan that does not. A measured share of changed answers is what
    these samples showed; with --confidence the plan comes with a proof for all samples like
    them, or exits with 4 and says how many samples that takes.

    With neither, the whole front is searched: plans for budgets from 0.05 to 0.8. Then any
    budget between is answered in seconds by what was measured, without the model; the output
    says whether the plan's loss is measured or predicted. --trials makes it search again.

    \b
    Examples:
      tpcal plan
      tpcal plan --budget 0.22
      tpcal plan tpcal-out/embedded-1f2e3d4c5b --budget 0.22
      tpcal plan --budget 0.1 --no-measure -o light.yaml
      tpcal plan --budget-kv 30% --max-loss 0.05 --trials 200 --timeout 600
      tpcal plan --max-loss 0.05
      tpcal plan --max-flips 0.05 --confidence 0.95 --weight count=2
    """
    from tpcal.views.front_view import stored_line
    from tpcal.views.plan_view import plan_view

    _check(limits, no_measure)
    if given is not None and folder is not None:
        raise click.UsageError(f"Only one profile can be given; got {given} and {folder}.")
    refuse_to_overwrite(output, force)
    folder, profile = read_profile(given or folder)
    with terminal.progress() as report:
        report(0, 0, "Planning")
        search |= {"storage": storage or folder / "study.journal", "progress": report}
        search["command"] = terminal.command()
        subject = PlanningSession(
            profile, folder, model, data, samples, batch_size, report, memory=memory
        )
        if budget is None and limits.max_loss is None and limits.max_flips is None:
            _whole_front(profile, folder, subject, search, no_measure, n_trials)
            return
        known = None
        if budget and not (n_trials or samples or no_measure or limits.confidence):
            known = _known(profile, budget, search)
        search["n_trials"] = n_trials or 100
        if known is not None:
            assert budget is not None
            found = _within(profile, known.plan, limits)
        elif limits.confidence is None:
            search |= {} if no_measure else subject.measurers()
            found = _measured(profile, budget, limits, search)
        else:
            found = _proven(profile, folder, subject, budget, limits, search, batch_size)
        if not no_measure:
            found = subject.signed(found)
        found = subject.placed(found, output.parent)
    from tpcal.calibrate.drop_all_depth import blind_spots
    from tpcal.plans.plan_file import save_plan

    save_plan(found, output)
    terminal.console().print(plan_view(found, title=str(output)))
    if known is not None:
        terminal.console().print(stored_line(known.measured, known.n_measured))
    after_plan(found, output)
    for warning in blind_spots(profile):
        terminal.warn(warning)


def _check(limits: LimitChoice, no_measure: bool) -> None:
    """Nothing, where the options fit together; otherwise click's own error."""
    limits.check()
    if no_measure and limits.confidence is not None:
        raise click.UsageError("--confidence must run the model, which --no-measure forbids.")


def _measured(
    profile: Profile, budget: Budget | None, limits: LimitChoice, search: dict[str, Any]
) -> Plan:
    """The best plan for the budget, or the cheapest within the limits."""
    if budget is None:
        from tpcal.planner.search.loss_limits import Allowance
        from tpcal.planner.search.within_a_loss import cheapest

        allowance = Allowance(limits.max_loss, limits.max_flips, limits.each_group)
        return cheapest(profile, allowance, **search)
    from tpcal.planner.search.one_budget import search as search_within

    return _within(profile, search_within(profile, budget, **search).plan, limits)


def _within(profile: Profile, found: Plan, limits: LimitChoice) -> Plan:
    """The plan of a budget, where it is within the limits."""
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.finals import sizes
    from tpcal.planner.search.loss_limits import Allowance

    allowance = Allowance(limits.max_loss, limits.max_flips, limits.each_group)
    assert found.loss is not None
    measured = found.loss.measured
    losses = measured or found.loss.predicted
    flips = found.loss.changed or Predictor(profile).flips(found.cuts)
    allowance.guard(losses, flips, sizes(profile), "measured" if measured else "predicted")
    loss = replace(found.loss, max_loss=limits.max_loss, max_flips=limits.max_flips)
    return replace(found, loss=loss)


def _known(profile: Profile, budget: Budget, search: dict[str, Any]) -> KnownPlan | None:
    """The plan that earlier searches know for a budget; None where one has to be searched."""
    from tpcal.planner.search.whole_front import answer

    names = ("storage", "weights", "max_cuts", "seed", "command")
    return answer(profile, budget, **{name: search[name] for name in names})


def _whole_front(
    profile: Profile,
    folder: Path,
    subject: PlanningSession,
    search: dict[str, Any],
    no_measure: bool,
    n_trials: int | None,
) -> None:
    """Measures plans of every budget, and prints the front."""
    from tpcal.planner.prediction.objective import Objective
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.front import front, named
    from tpcal.planner.search.storage import open_storage
    from tpcal.planner.search.whole_front import N_TRIALS, whole_front
    from tpcal.views.front_view import front_view

    predictor = Predictor(profile, Objective(search["weights"]))
    if no_measure:
        points = front(predictor, open_storage(None))
    else:
        measurer = subject.measurers()["measurer"]
        points = whole_front(profile, measurer=measurer, n_trials=n_trials or N_TRIALS, **search)
    search["progress"](0, 0, "Drawing")
    screen = terminal.console()
    screen.print(front_view(points, title=str(folder), names=named(predictor, points)))
    after_front(points)


def _proven(
    profile: Profile,
    folder: Path,
    subject: PlanningSession,
    budget: Budget | None,
    limits: LimitChoice,
    search: dict[str, Any],
    batch_size: int,
) -> Plan:
    """The plan for the budget, or the cheapest of those within the limits, with a certificate."""
    from tpcal.planner.certificates.binomial import Promise

    assert limits.max_flips is not None
    assert limits.confidence is not None
    promise = Promise(limits.max_flips, limits.confidence, limits.each_group, place=1)
    n = limits.certify_samples or N_CERTIFY
    if limits.each_group:
        promise.check_n(n // len(profile.groups), "--certify-samples of each group")
    else:
        promise.check_n(n, "--certify-samples")
    measurers = subject.measurers()
    if budget is not None:
        plans = [_measured(profile, budget, limits, {**search, **measurers})]
    else:
        from tpcal.planner.search.loss_limits import Allowance
        from tpcal.planner.search.within_a_loss import explore

        allowance = Allowance(limits.max_loss, limits.max_flips, limits.each_group)
        plans = explore(profile, allowance, measurer=measurers["measurer"], **search).row(
            MOST_PROVEN
        )
    from tpcal.planner.certificates.certify import prove
    from tpcal.planner.certificates.judged import Judged

    return prove(
        [subject.signed(one) for one in plans],
        promise,
        subject.loaded,
        subject.unseen(limits.certify_samples, N_CERTIFY),
        batch_size=batch_size,
        progress=search["progress"],
        judged=Judged.beside(folder.parent),
    )
