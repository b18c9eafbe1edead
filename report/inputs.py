"""What the report is about: a profile, the plans beside it, and all that searches measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpcal.plans.errors import FitError
from tpcal.plans.local_paths import last_part
from tpcal.report.chart_style import GROUPS, PLANS

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile
    from tpcal.planner.prediction.predict import Predictor
    from tpcal.planner.search.front import MeasuredPoint, Point
    from tpcal.plans.schema import Cost, Cut, Plan

MOST_CUTS = 4
"""Of a predicted plan."""


@dataclass(frozen=True)
class Given:
    """A plan that was named, with its cost and prediction for the profile's typical prompt."""

    name: str
    plan: Plan
    cost: Cost
    predicted: Mapping[str, float]
    """Nats per group."""
    place: int
    """Its place among the plans, from which its colour and symbol come."""
    note: str = ""
    """What has to be known of it."""

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
        """Nats per group, as the plan's file says; empty where it was not measured."""
        return self.plan.loss.measured if self.plan.loss else {}

    @property
    def flips(self) -> Mapping[str, float]:
        """Share of changed answer tokens per group, as the plan's file says."""
        return self.plan.loss.changed if self.plan.loss else {}

    @property
    def losses(self) -> Mapping[str, float]:
        """Measured nats per group where there are any, predicted ones elsewhere."""
        return self.measured or self.predicted


@dataclass(frozen=True)
class Material:
    """All that the page is made of, but for samples, evaluations and timings."""

    profile: Profile
    folder: str
    predictor: Predictor
    known: Sequence[MeasuredPoint]
    """Plans that searches measured, on one set of samples."""
    same_samples: bool
    """Whether that set is the one that the profile was measured on."""
    plans: tuple[Given, ...]

    @cached_property
    def marked(self) -> dict[str, str]:
        """The groups that single cuts hurt most, worst first, with their colours."""
        profile = self.profile
        means = {g: float(np.minimum(profile.mean("kl", g), 1.0).mean()) for g in profile.groups}
        ranked = sorted(profile.groups, key=lambda g: -means[g])
        return dict(zip(ranked, GROUPS, strict=False))

    @cached_property
    def names(self) -> dict[tuple[Cut, ...], str]:
        """The published schedules among the measured plans."""
        from tpcal.planner.search.front import named

        return named(self.predictor, [m.point for m in self.known])

    @cached_property
    def front(self) -> tuple[Point, ...]:
        """The plans that nothing beats: of those that were measured; predicted where none were."""
        from tpcal.planner.search.front import pareto

        return pareto(m.point for m in self.known) if self.known else self.predicted_front

    @cached_property
    def predicted_front(self) -> tuple[Point, ...]:
        """The best plan for each of several budgets, as far as single cuts tell."""
        from tpcal.planner.search.front import pareto, predictions

        return pareto(predictions(self.predictor, MOST_CUTS))

    def score(self, given: Given) -> float:
        """A plan's loss as searches count it."""
        return self.predictor.objective.of(given.losses)


def gather(
    profile: Profile, folder: Path, plans: Mapping[str, Plan], storage: Path | str | None
) -> Material:
    """The material of a report.

    Args:
        profile: What calibration measured.
        folder: Where it is.
        plans: By name.
        storage: Where its searches are kept; None: in the folder.

    Raises:
        FitError: A plan was made for another structure than the profile's model has.
        UsageError: The profile holds no cuts that leave tokens, or the storage cannot be used.
    """
    from tpcal.planner.prediction.predict import Predictor

    for name, plan in plans.items():
        _check(name, plan, profile)
    predictor = Predictor(profile)
    known, same = _searched(predictor, storage or folder / "study.journal")
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
    """What searches measured, and whether on the samples of the profile."""
    import optuna

    from tpcal.planner.search.front import on_one_set, prefix
    from tpcal.planner.search.run import family
    from tpcal.planner.search.storage import open_storage

    if isinstance(storage, Path) and not storage.exists():
        return [], True
    opened = open_storage(storage)
    start, own = prefix(predictor), family(predictor, predictor.profile)  # type: ignore[arg-type]
    names = [n for n in optuna.get_all_study_names(opened) if n.startswith(start)]
    return on_one_set(predictor, opened), all(name.startswith(own) for name in names)
