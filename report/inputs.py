"""Inputs of the report: a profile, plans, and all plans that searches measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpcal.calibrate.profile import STUDY
from tpcal.plans.errors import FitError
from tpcal.plans.local_paths import last_part
from tpcal.report.chart_style import GROUPS, PLANS

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.front import MeasuredPoint, Point
    from tpcal.plans.plan_records import Cost, Cut, Plan


@dataclass(frozen=True)
class Given:
    """A named plan with its cost and predicted loss for the typical prompt of the profile."""

    name: str
    plan: Plan
    cost: Cost
    predicted: Mapping[str, float]
    """Predicted loss of each group in nats."""
    place: int
    """Index among the plans, which decides colour and symbol."""
    note: str = ""
    """Note to show with the plan; empty if there is none."""

    @property
    def colour(self) -> str:
        return PLANS[self.place % len(PLANS)][0]

    @property
    def dash(self) -> str:
        return PLANS[self.place % len(PLANS)][1]

    @property
    def symbol(self) -> str:
        return PLANS[self.place % len(PLANS)][2]

    @property
    def measured(self) -> Mapping[str, float]:
        """Measured loss of each group in nats, from the plan; empty if it was not measured."""
        return self.plan.loss.measured if self.plan.loss else {}

    @property
    def flips(self) -> Mapping[str, float]:
        """Share of changed answers of each group, from the plan; empty if it was not measured."""
        return self.plan.loss.changed if self.plan.loss else {}

    @property
    def losses(self) -> Mapping[str, float]:
        """Loss of each group in nats: measured, or predicted if it was not measured."""
        return self.measured or self.predicted


@dataclass(frozen=True)
class Material:
    """The data of the report, except samples, evaluations and timings."""

    profile: Profile
    folder: str
    predictor: Predictor
    known: Sequence[MeasuredPoint]
    """Plans that searches measured on one set of samples."""
    same_samples: bool
    """Whether that set is the one that the profile was measured on."""
    plans: tuple[Given, ...]

    @cached_property
    def marked(self) -> dict[str, str]:
        """The groups with the largest losses of single cuts and their colours, worst first."""
        profile = self.profile
        means = {g: float(np.minimum(profile.mean("kl", g), 1.0).mean()) for g in profile.groups}
        ranked = sorted(profile.groups, key=lambda g: -means[g])
        return dict(zip(ranked, GROUPS, strict=False))

    @cached_property
    def names(self) -> dict[tuple[Cut, ...], str]:
        """Names of the published schedules among the measured plans, by their cuts."""
        from tpcal.planner.search.front import named

        return named(self.predictor, [m.point for m in self.known])

    @cached_property
    def front(self) -> tuple[Point, ...]:
        """The Pareto front of the measured plans, or of predicted plans if none was measured."""
        from tpcal.planner.search.front import pareto

        return pareto(m.point for m in self.known) if self.known else self.predicted_front

    @cached_property
    def predicted_front(self) -> tuple[Point, ...]:
        """The Pareto front of the plans predicted to be best for several budgets."""
        from tpcal.planner.search.front import pareto, predictions

        return pareto(predictions(self.predictor))

    def score(self, given: Given) -> float:
        """The objective of a plan, as in searches."""
        return self.predictor.objective.of(given.losses)


def gather(
    profile: Profile, folder: Path, plans: Mapping[str, Plan], storage: Path | str | None
) -> Material:
    """The data of a report.

    Args:
        profile: Profile to report.
        folder: Folder of the profile.
        plans: Plans by name.
        storage: Storage of the searches; None means a file in the folder.

    Raises:
        FitError: If a plan was made for another model structure than the profile.
        UsageError: If the profile has no probe that leaves tokens, or the storage cannot be used.
    """
    from tpcal.planner.prediction.predict import Predictor

    for name, plan in plans.items():
        _check(name, plan, profile)
    predictor = Predictor(profile)
    known, same = _searched(predictor, storage or folder / STUDY)
    given = (_given(predictor, i, name, plan) for i, (name, plan) in enumerate(plans.items()))
    return Material(profile, str(folder), predictor, known, same, tuple(given))


def _check(name: str, plan: Plan, profile: Profile) -> None:
    made_for, n_layers = plan.model, profile.model.n_layers
    problems = []
    if made_for and made_for.n_layers != n_layers:
        problems.append(
            f"made for {made_for.n_layers} layers; the profile's model has {n_layers}."
        )
    elif made_for and made_for.fingerprint not in (None, profile.model.fingerprint):
        of = last_part(made_for.name or "") or made_for.architecture
        own = last_part(profile.model.name or "the profile's model")
        problems.append(f"made for {of}, whose structure is not that of {own}.")
    elif plan.cuts and plan.cuts[-1].layer >= n_layers:
        problems.append(f"cuts before layer {plan.cuts[-1].layer}; the model has {n_layers}.")
    if problems:
        raise FitError(name, problems)


def _given(predictor: Predictor, place: int, name: str, plan: Plan) -> Given:
    from tpcal.plans.cost import plan_cost

    profile = predictor.profile
    typical = (profile.n_tokens, profile.n_text, profile.layer_ms, profile.executor_ms)
    cost = plan_cost(plan, profile.shape, *typical)
    predicted = predictor.loss(plan.cuts)
    return Given(name, plan, cost, predicted, place, _note(plan, profile))


def _note(plan: Plan, profile: Profile) -> str:
    digest = plan.provenance.get("profile")
    if digest == profile.digest:
        return ""
    if digest is None:
        return "not made from a profile; its loss is predicted from this one"
    return "made from another profile; its measured losses are of that one's samples"


def _searched(predictor: Predictor, storage: Path | str) -> tuple[list[MeasuredPoint], bool]:
    """The plans that searches measured, and whether on the samples of the profile."""
    from tpcal.planner.search.front import on_one_set
    from tpcal.planner.search.ledger import Ledger

    if isinstance(storage, Path) and not storage.exists():
        return [], True
    ledger = Ledger.open(storage, predictor.profile)
    return on_one_set(predictor, ledger), ledger.all_on(predictor.profile)
