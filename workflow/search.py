"""`tpcal.find_plan` and `tpcal.find_front`: choose the cuts by a profile and measured plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.sample_size import N_CERTIFY
from tpcal.plans.errors import GuardrailError, UsageError
from tpcal.plans.extras import needs
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.answer_batches import answers_at_once
from tpcal.workflow.profiles import StoredProfile
from tpcal.workflow.session import PlanningSession
from tpcal.workflow.step_settings import PlanLimits, PlanningSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.planner.certificates.binomial import Promise
    from tpcal.planner.prediction.budget import Budget
    from tpcal.planner.prediction.objective import Objective
    from tpcal.planner.problem import Problem
    from tpcal.planner.search.front import Point
    from tpcal.planner.search.loss_limits import LossLimits
    from tpcal.planner.search.settings import SearchSettings
    from tpcal.planner.search.whole_front import KnownPlan
    from tpcal.plans.plan_records import Cut, Plan

N_TRIALS = 100
MOST_PROVEN = 8
"""Plans that are tried on the samples of a proof."""


@dataclass(frozen=True)
class FoundPlan:
    """A plan and where it comes from."""

    made: Plan
    """The plan, whose local paths begin at the profile's folder."""
    session: PlanningSession
    known: KnownPlan | None = None
    """What earlier searches knew of it; None if it was searched now."""

    @property
    def stored(self) -> StoredProfile:
        """The profile that the plan was made from."""
        return self.session.stored

    @cached_property
    def plan(self) -> Plan:
        """The plan, whose local paths begin at the working folder."""
        return self.session.placed(self.made, Path())

    def save(self, path: Path | str) -> Plan:
        """Writes the plan to a file and returns it as the file has it."""
        from tpcal.plans.plan_file import save_plan

        plan = self.session.placed(self.made, Path(path).parent)
        save_plan(plan, path)
        return plan


@dataclass(frozen=True)
class FoundFront:
    """The plans that no other plan beats in both cost and loss."""

    stored: StoredProfile
    objective: Objective
    """What the losses of the points are."""
    points: Sequence[Point]
    """Cheapest first."""
    names: Mapping[tuple[Cut, ...], str]
    """Published schedules among the points, by their cuts."""


@needs("plan")
def find_plan(
    profile: StoredProfile | Path | str | None = None,
    budget: Budget | float | None = None,
    *,
    limits: PlanLimits | None = None,
    model: ModelChoice | Loaded | str | None = None,
    settings: PlanningSettings | None = None,
    progress: Progress | None = None,
) -> FoundPlan:
    """The plan that loses least within a budget, or the cheapest plan within the limits.

    With a budget and limits, a plan that loses more than the limits is refused. With a confidence,
    the plan comes with a certificate. What was measured is kept in the profile's folder, so that
    the same call continues an interrupted search.

    Example:
        >>> import tpcal
        >>> predicted = tpcal.PlanningSettings(measure=False)  # n_trials=50 would run the model
        >>> found = tpcal.find_plan("tpcal-out", 0.5, settings=predicted)
        >>> plan = found.save("plan.yaml")
        >>> round(plan.cost.layer_average_keep, 2)
        0.5

    Args:
        profile: A stored profile or its path, as `load_profile` takes it.
        budget: What the plan may cost; a number is the layer average of keep in (0, 1]. None asks
            for the cheapest plan within the limits.
        limits: What the plan may lose; None sets no limit.
        model: Another place of the profile's model, or the model loaded; None loads the model that
            the profile names.
        settings: How the search runs.
        progress: Receives the trials done, the trials in all and what is going on.

    Raises:
        UsageError: Neither a budget nor a limit is given, or an input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        BudgetError: No plan is as cheap as the budget.
        GuardrailError: No plan is within the limits, or none can be certified.
        FitError: The model's structure is not that of the profile's.
    """
    limits, settings = limits or PlanLimits(), settings or PlanningSettings()
    limits.check(settings.measure)
    if budget is None and not limits.any:
        raise UsageError(
            "A budget or a limit must be given; got neither. tpcal.find_front searches all "
            "budgets."
        )
    search = _Search.start(profile, model, limits, settings, progress or silent)
    found, known = search.find(budget)
    return FoundPlan(
        search.session.signed(found) if settings.measure else found, search.session, known
    )


@needs("plan")
def find_front(
    profile: StoredProfile | Path | str | None = None,
    *,
    model: ModelChoice | Loaded | str | None = None,
    settings: PlanningSettings | None = None,
    progress: Progress | None = None,
) -> FoundFront:
    """The front of loss and cost, after plans of all budgets from 0.05 to 0.8 were measured.

    Afterwards `find_plan` answers any budget between by what was measured.

    Example:
        >>> import tpcal
        >>> front = tpcal.find_front(settings=tpcal.PlanningSettings(measure=False))
        >>> round(front.points[-1].layer_average_keep, 2)  # the unpruned model
        1.0

    Args:
        profile: As `find_plan`, like the other arguments.

    Raises:
        UsageError: An input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        FitError: The model's structure is not that of the profile's.
    """
    settings = settings or PlanningSettings()
    search = _Search.start(profile, model, PlanLimits(), settings, progress or silent)
    return search.front()


@dataclass(frozen=True)
class _Search:
    """The searches on one profile."""

    session: PlanningSession
    limits: PlanLimits
    settings: PlanningSettings
    progress: Progress

    @classmethod
    def start(
        cls,
        profile: StoredProfile | Path | str | None,
        model: ModelChoice | Loaded | str | None,
        limits: PlanLimits,
        settings: PlanningSettings,
        progress: Progress,
    ) -> _Search:
        stored = StoredProfile.of(profile)
        progress(0, 0, "Planning")
        session = PlanningSession(stored, ModelChoice.of(model), settings, progress)
        return cls(session, limits, settings, progress)

    @property
    def stored(self) -> StoredProfile:
        return self.session.stored

    @property
    def loss_limits(self) -> LossLimits:
        from tpcal.planner.search.loss_limits import LossLimits

        return LossLimits(self.limits.max_loss, self.limits.max_flips, self.limits.each_group)

    def find(self, budget: Budget | float | None) -> tuple[Plan, KnownPlan | None]:
        """The plan, and what was known of it before."""
        from tpcal.planner.prediction.budget import Budget

        if budget is not None and not isinstance(budget, Budget):
            budget = Budget(budget)
        known = self._known(budget)
        if known is not None:
            return self._plans_within(known.plan), known
        if self.limits.confidence is not None:
            return self._proven(budget), None
        measurers = self.session.measurers() if self.settings.measure else {}
        return self._measured(budget, measurers), None

    def front(self) -> FoundFront:
        """The front, measured or predicted."""
        from tpcal.planner.search import whole_front
        from tpcal.planner.search.front import front, named
        from tpcal.planner.search.settings import N_TRIALS_OF_FRONT

        problem = self._problem(None)
        if self.settings.measure:
            measurer = self.session.measurers()["measurer"]
            settings = self._search_settings(N_TRIALS_OF_FRONT)
            points = whole_front.whole_front(problem, measurer=measurer, settings=settings)
        else:
            points = front(problem.predictor, None)
        self.progress(0, 0, "Comparing with published schedules")
        names = named(problem.predictor, points)
        return FoundFront(self.stored, problem.objective, points, names)

    def _problem(self, budget: Budget | None) -> Problem:
        """What is searched; without a budget a plan may cost as much as the unpruned model."""
        from tpcal.planner.prediction.objective import Objective
        from tpcal.planner.problem import ALL, Problem
        from tpcal.plans.engines import named

        own, profile = self.settings, self.stored.profile
        objective = Objective(own.weights, own.objective)
        engine = None if own.engine is None else named(own.engine)
        return Problem.of(profile, budget or ALL, own.max_cuts, objective, engine)

    def _search_settings(self, n_trials: int = N_TRIALS) -> SearchSettings:
        from tpcal.planner.search.settings import SearchSettings

        own = self.settings
        return SearchSettings(
            n_trials=own.n_trials or n_trials,
            timeout=own.timeout,
            seed=own.seed,
            storage=own.storage or self.stored.study,
            command=own.command,
            progress=self.progress,
        )

    def _known(self, budget: Budget | None) -> KnownPlan | None:
        """The plan that earlier searches found for a budget; None if a search is needed."""
        from tpcal.planner.search.whole_front import answer

        own = self.settings
        if budget is None or own.n_trials or own.samples or not own.measure:
            return None
        if self.limits.confidence:
            return None
        known = answer(self._problem(budget), self._search_settings())
        # A limit is about what was measured, so a plan that was only predicted does not answer it.
        return None if known and self.limits.any and not known.measured else known

    def _measured(self, budget: Budget | None, measurers: Mapping[str, Any]) -> Plan:
        """The best plan for the budget, or the cheapest within the limits."""
        from tpcal.planner.search.one_budget import search
        from tpcal.planner.search.within_a_loss import cheapest

        problem, settings = self._problem(budget), self._search_settings()
        if budget is None:
            return cheapest(problem, self.loss_limits, settings=settings, **measurers)
        return self._plans_within(search(problem, settings=settings, **measurers).plan)

    def _plans_within(self, found: Plan) -> Plan:
        """The plan of a budget with its limits; raises GuardrailError if it loses more."""
        from tpcal.planner.prediction.predict import Predictor
        from tpcal.planner.search.finals import group_sizes
        from tpcal.plans.plan_records import FURTHER

        assert found.loss is not None
        profile, measured = self.stored.profile, found.loss.measured
        if self.limits.any and self.settings.measure and found.cuts and not measured:
            raise GuardrailError(
                "The plan's loss must be measured to be within the limits, and no plan was "
                "measured in time. Raise --timeout."
            )
        losses = measured or found.loss.predicted
        flips = found.loss.changed or Predictor(profile).flips(found.cuts)
        kind = "measured" if measured else "predicted"
        sizes = group_sizes(profile)
        if measured:
            first, further = self.session.drawn
            on_further = found.provenance.get("measured_on") == FURTHER
            sizes = dict.fromkeys(flips, 0) | group_sizes(further if on_further else first)
        self.loss_limits.guard(losses, flips, sizes, kind)
        most = self.limits
        loss = replace(found.loss, max_loss=most.max_loss, max_flips=most.max_flips)
        return replace(found, loss=loss)

    def _proven(self, budget: Budget | None) -> Plan:
        """The plan for the budget or the cheapest within the limits, with a certificate."""
        from tpcal.planner.certificates.certify import ProofSettings, prove
        from tpcal.planner.certificates.judgement_record import JudgementRecord

        promise, session = self._promise(), self.session
        unseen = session.unseen(self.limits.certify_samples, N_CERTIFY)
        length, how = unseen.answer_tokens, self.settings
        return prove(
            [session.signed(plan) for plan in self._candidates(budget)],
            promise,
            session.loaded,
            unseen,
            settings=ProofSettings(
                batch_size=answers_at_once(
                    session.loaded, unseen, how.batch_size, how.memory, length
                ),
                max_new_tokens=length,
                judged=JudgementRecord.beside(self.stored.folder.parent),
            ),
            progress=self.progress,
        )

    def _promise(self) -> Promise:
        """What is to be proven; too few samples are refused before the search."""
        from tpcal.planner.certificates.binomial import Promise

        limits = self.limits
        assert limits.max_flips is not None
        assert limits.confidence is not None
        promise = Promise(limits.max_flips, limits.confidence, limits.each_group, place=1)
        n = limits.certify_samples or N_CERTIFY
        if limits.each_group:
            n_groups = len(self.stored.profile.groups)
            promise.check_n(n // n_groups, "--certify-samples of each group")
        else:
            promise.check_n(n, "--certify-samples")
        return promise

    def _candidates(self, budget: Budget | None) -> list[Plan]:
        """The plans that are tested in turn, the dearest first."""
        from tpcal.planner.search.within_a_loss import explore

        measurers = self.session.measurers()
        if budget is not None:
            return [self._measured(budget, measurers)]
        found = explore(
            self._problem(None),
            self.loss_limits,
            measurer=measurers["measurer"],
            settings=self._search_settings(),
        )
        return found.row(MOST_PROVEN)
