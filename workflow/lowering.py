"""`tpcal.lower`: the best plan of the same cost that a serving engine can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import FitError, UsageError
from tpcal.plans.extras import needs
from tpcal.plans.plan_names import load_plan
from tpcal.plans.plan_records import FURTHER, OWN
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.profiles import StoredProfile
from tpcal.workflow.search import FoundPlan, find_plan
from tpcal.workflow.step_settings import PlanningSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.prediction.budget import Budget
    from tpcal.plans.engines import Engine
    from tpcal.plans.plan_records import Loss, Plan


@dataclass(frozen=True)
class LoweredPlan:
    """A plan that an engine runs, beside the plan that it was made from."""

    name: str
    """What the plan that was lowered is called."""
    original: Plan
    """The plan that was lowered, with its cost for the profile's prompt. Its loss is measured on
    the samples of the lowered plan's, or both losses are predicted."""
    found: FoundPlan
    """The plan for the engine, and where it comes from."""

    @property
    def plan(self) -> Plan:
        """The plan for the engine."""
        return self.found.plan

    def save(self, path: Path | str) -> Plan:
        """Writes the plan for the engine to a file and returns it as the file has it."""
        return self.found.save(path)


@needs("plan")
def lower(
    plan: Plan | Path | str,
    engine: str,
    *,
    profile: StoredProfile | Path | str | None = None,
    model: ModelChoice | Loaded | str | None = None,
    settings: PlanningSettings | None = None,
    progress: Progress | None = None,
) -> LoweredPlan:
    """The plan that loses least in an engine, of those that cost no more than the given plan.

    A search chooses it, as `find_plan` does, in the unit of the given plan's budget. The losses of
    both plans are then measured on the same samples.

    Example:
        >>> import tpcal
        >>> predicted = tpcal.PlanningSettings(measure=False)  # n_trials=50 would run the model
        >>> deep = tpcal.Plan(cuts=(tpcal.Cut(layer=4, keep=0.0),))
        >>> lowered = tpcal.lower(deep, "embeddings", profile="tpcal-out", settings=predicted)
        >>> lowered.plan.cuts[0].layer
        0

    Args:
        plan: The plan to lower, or its name as `load_plan` takes it.
        engine: Name of the engine: ``embeddings`` stands for all that cannot cut inside the
            decoder, ``vllm`` for vLLM with tpcal's plugin.
        profile: A profile of the plan's model, as `find_plan` takes it.
        model: As `find_plan`.
        settings: How the search runs; its ``engine`` is not looked at.
        progress: As `find_plan`.

    Raises:
        UsageError: The engine runs the plan as it is, or an input cannot be used.
        MissingExtra: ``tpcal[plan]`` is not installed.
        BudgetError: No plan for the engine is as cheap.
        FitError: The plan or the model has another structure than the profile's model.
    """
    from tpcal.plans import engines

    target, stored = engines.named(engine), StoredProfile.of(profile)
    name, original = _named(plan, stored.profile)
    _refuse(name, original, target, stored.profile)
    settings = replace(settings or PlanningSettings(), engine=engine)
    found = find_plan(
        stored,
        _budget(original, stored.profile),
        model=model,
        settings=settings,
        progress=progress or silent,
    )
    before, after = _losses(original, found, settings.measure, progress or silent)
    facts = {**found.made.provenance, "lowered_from": original.digest}
    if settings.measure:
        facts["measured_on"] = FURTHER if "finals" in found.session.measurers() else OWN
    made = replace(found.made, loss=after, provenance=facts)
    original = replace(_priced(original, stored.profile), loss=before)
    return LoweredPlan(name, original, replace(found, made=made))


def _named(plan: Plan | Path | str, profile: Profile) -> tuple[str, Plan]:
    """The plan and what messages call it; a preset is scaled to the profile's model."""
    from tpcal.plans.plan_records import Plan

    if isinstance(plan, Plan):
        return plan.name or "The plan", plan
    return str(plan), load_plan(plan, profile.shape.n_layers, profile.n_tokens)


def _refuse(name: str, plan: Plan, engine: Engine, profile: Profile) -> None:
    """Raises an error if the plan is not for the profile's model, or has no need to be lowered.

    Raises:
        UsageError: The engine runs the plan as it is.
        FitError: The plan was made for another structure.
    """
    made, here = plan.model, profile.model
    other = made and made.fingerprint not in (None, here.fingerprint)
    if other or any(cut.layer >= profile.shape.n_layers for cut in plan.cuts):
        raise FitError(
            name, [f"made for another structure than {here.name}'s, of which the profile is."]
        )
    if not engine.plan_problems(plan, here.architecture, untried=True):
        raise UsageError(
            f"A plan must need something that {engine.title} cannot do to be lowered; {name} runs "
            "there as it is."
        )


def _budget(plan: Plan, profile: Profile) -> Budget:
    """What the plan costs, in the unit of its own budget."""
    from tpcal.planner.prediction.budget import LAYER_AVERAGE, Budget, Prices

    kind = (plan.budget and plan.budget.kind) or LAYER_AVERAGE
    return Budget(Prices(profile).of(plan.cuts, kind), kind)


def _priced(plan: Plan, profile: Profile) -> Plan:
    """The plan with its cost for the profile's prompt."""
    from tpcal.plans.cost import plan_cost

    times = profile.layer_ms, profile.executor_ms
    cost = plan_cost(plan, profile.shape, profile.n_tokens, profile.n_text, *times)
    return replace(plan, cost=cost)


def _losses(
    original: Plan, found: FoundPlan, measure: bool, progress: Progress
) -> tuple[Loss, Loss]:
    """What the plan and the lowered plan lose, on the samples that decide a search."""
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.finals import completed
    from tpcal.planner.search.trials import measure_all
    from tpcal.plans.plan_records import Loss

    predictor = Predictor(found.stored.profile)
    both = original, found.made
    losses = [Loss(predicted=_rounded(predictor.loss(plan.cuts))) for plan in both]
    if measure:
        progress(0, 0, "Measuring both plans")
        measurers = found.session.measurers()
        own, finals = measurers["measurer"], measurers.get("finals")
        means = [measure_all((finals or own).of(plan), plan.cuts) for plan in both]
        if finals and set(own.groups) - set(finals.groups):
            searched = [measure_all(own.of(plan), plan.cuts) for plan in both]
            means = [completed(*one) for one in zip(means, searched, strict=True)]
        losses = [
            replace(
                loss,
                measured=_rounded(lost.measured),
                margin=_rounded(lost.margins),
                changed=_rounded(lost.flips),
            )
            for loss, lost in zip(losses, means, strict=True)
        ]
    before, after = losses
    return before, after


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {group: round(value, 6) for group, value in values.items()}
