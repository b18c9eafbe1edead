"""The command `tpcal plan`."""

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
"""Most plans that are tested on the samples of a proof."""


@click.command(short_help="Choose the cuts for a budget, or within a loss.")
@click.argument("given", metavar="[PROFILE]", required=False, type=click.Path(path_type=Path))
@options.budget_options
@options.limit_options
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=options.weight,
    metavar="GROUP=W",
    help="Weight of the loss of a group. May be given several times.  [default: 1]",
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    help="Profile to plan from; the same as PROFILE.  [default: the newest in tpcal-out]",
)
@options.output_options("plan.yaml")
@click.option(
    "--trials",
    "n_trials",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of plans to measure.  [default: 100, or 300 for the whole front]",
)
@click.option(
    "--timeout", type=options.Finite(min=0), metavar="S", help="Stop the search after S seconds."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the search.")
@click.option(
    "--max-cuts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Largest number of cuts in a plan.",
)
@click.option("--no-measure", is_flag=True, help="Only predict losses, without the model.")
@click.option("--data", metavar="DATA", help="Data of the profile's samples, if it has moved.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of samples to compare plans on.  [default: that of the profile]",
)
@options.model_options
@options.batch_size_option(16)
@options.memory_option
@click.option(
    "--storage",
    metavar="URL",
    help="Optuna journal file or database URL of the search.  [default: a file in the profile]",
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
    """Choose the cuts that lose least within a budget, or cost least within a loss.

    The command needs a profile from 'tpcal calibrate'. It runs the model to measure candidate
    plans on samples drawn like those of the profile, and the best plans on further samples.
    The objective is half the loss of the worst group plus half the mean loss of all groups.
    With --no-measure, predicted losses decide. You can interrupt the command at any time; the
    same command continues.

    With a budget, the command refuses a plan that exceeds --max-loss or --max-flips. Without
    a budget, it searches for the cheapest plan within them. The measured share of
    changed answers holds for the samples that were measured. With --confidence, the plan
    comes with a proof for all samples like them. If the proof fails, the command exits with
    4 and states how many samples are needed.

    Without a budget or a limit, the command searches the whole front: plans for budgets
    from 0.05 to 0.8. Afterwards it answers any budget between them in seconds without the
    model, and states whether the loss of the plan is measured or predicted. --trials makes it
    search again.

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
        # Without a budget and without limits, search the whole front.
        if budget is None and limits.max_loss is None and limits.max_flips is None:
            _whole_front(profile, folder, subject, search, no_measure, n_trials)
            return
        # A budget may be answered by the plans that earlier searches measured, unless an option
        # asks for a new search.
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
        # Record the samples that the plan was made from, so that none of them is used to test it.
        if not no_measure:
            found = subject.signed(found)
        found = subject.placed(found, output.parent)
    from tpcal.calibrate.drop_all_depth import blind_spots
    from tpcal.plans.schema import save_plan

    save_plan(found, output)
    terminal.console().print(plan_view(found, title=str(output)))
    if known is not None:
        terminal.console().print(stored_line(known.measured, known.n_measured))
    after_plan(found, output)
    for warning in blind_spots(profile):
        terminal.warn(warning)


def _check(limits: LimitChoice, no_measure: bool) -> None:
    """Raises click.UsageError if two options contradict each other."""
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
        return cheapest(allowance=allowance, **_arguments(profile, None, search))
    from tpcal.planner.search.one_budget import search as search_within

    return _within(profile, search_within(**_arguments(profile, budget, search)).plan, limits)


def _arguments(profile: Profile, budget: Budget | None, search: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a search: the problem, the settings, and what measures plans."""
    from tpcal.planner.problem import Problem
    from tpcal.planner.search.settings import SearchSettings

    rest = dict(search)
    call: dict[str, Any] = {n: rest.pop(n) for n in ("measurer", "finals") if n in rest}
    target = 1.0 if budget is None else budget
    problem = Problem.of(profile, target, rest.pop("max_cuts"), rest.pop("weights"))
    return {"problem": problem, "settings": SearchSettings(**rest), **call}


def _within(profile: Profile, found: Plan, limits: LimitChoice) -> Plan:
    """The plan with its limits; raises GuardrailError if its loss exceeds them."""
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
    """The plan that earlier searches found for a budget; None if a search is needed."""
    from tpcal.planner.search.whole_front import answer

    return answer(**_arguments(profile, budget, search))


def _whole_front(
    profile: Profile,
    folder: Path,
    subject: PlanningSession,
    search: dict[str, Any],
    no_measure: bool,
    n_trials: int | None,
) -> None:
    """Searches plans of every budget, and prints the front."""
    from tpcal.planner.search.front import front, named
    from tpcal.planner.search.whole_front import N_TRIALS, whole_front
    from tpcal.views.front_view import front_view

    given = _arguments(profile, None, {**search, "n_trials": n_trials or N_TRIALS})
    predictor = given["problem"].predictor
    if no_measure:
        points = front(predictor, None)
    else:
        points = whole_front(measurer=subject.measurers()["measurer"], **given)
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
    """The plan for the budget, or the cheapest plan within the limits, with a certificate."""
    from tpcal.planner.certificates.binomial import Promise

    assert limits.max_flips is not None
    assert limits.confidence is not None
    # Refuse at once if the samples of the proof cannot be enough, before any plan is measured.
    promise = Promise(limits.max_flips, limits.confidence, limits.each_group, place=1)
    n = limits.certify_samples or N_CERTIFY
    if limits.each_group:
        promise.check_n(n // len(profile.groups), "--certify-samples of each group")
    else:
        promise.check_n(n, "--certify-samples")
    # A budget has one plan to test. Without a budget, several plans within the limits are tested
    # in a fixed order, the most expensive one first.
    measurers = subject.measurers()
    if budget is not None:
        plans = [_measured(profile, budget, limits, {**search, **measurers})]
    else:
        from tpcal.planner.search.loss_limits import Allowance
        from tpcal.planner.search.within_a_loss import explore

        allowance = Allowance(limits.max_loss, limits.max_flips, limits.each_group)
        given = _arguments(profile, None, {**search, "measurer": measurers["measurer"]})
        plans = explore(allowance=allowance, **given).row(MOST_PROVEN)
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
