"""A finished plan: cuts with model, budget, loss, cost and provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import tpcal
from tpcal.planner.prediction.budget import LAYER_AVERAGE
from tpcal.planner.prediction.predict import Predictor
from tpcal.planner.problem import Problem
from tpcal.planner.search.ledger import GroupMeans
from tpcal.planner.search.settings import SearchSettings
from tpcal.plans.cost import plan_cost
from tpcal.plans.input_sizes import KEY
from tpcal.plans.plan_records import Cut, Loss, Plan, ReachedBudget
from tpcal.plans.redaction import redacted_data

LIBRARIES = ("numpy", "optuna", "scipy", "torch", "transformers")


def search_facts(problem: Problem, settings: SearchSettings) -> dict[str, Any]:
    """Provenance that every way to search writes."""
    return {"seed": settings.seed, "command": settings.command, **problem.objective.facts}


def finished_plan(
    problem: Problem,
    cuts: Sequence[Cut],
    facts: Mapping[str, Any],
    means: GroupMeans | None = None,
) -> Plan:
    """The plan to be written to a file.

    Args:
        problem: Supplies predicted loss, model and cost, and what was asked for.
        cuts: What the search chose.
        facts: Provenance of the search: seed, sampler, study, command; None is left out.
        means: What it lost when the model was run; None: it was not run.
    """
    profile, predictor, budget = problem.profile, problem.predictor, problem.budget
    lost = GroupMeans({}, {}) if means is None else means
    reached = round(predictor.prices.of(cuts, budget.kind), 6)
    kind = None if budget.kind == LAYER_AVERAGE else budget.kind
    plan = Plan(
        cuts=tuple(cuts),
        scope=profile.scope,
        merge=profile.merge,
        model=profile.model,
        budget=ReachedBudget(budget.target, reached, kind),
        loss=Loss(
            predicted=_rounded(predictor.loss(cuts)),
            measured=_rounded(lost.measured),
            margin=_rounded(lost.margins),
            changed=_rounded(lost.flips),
        ),
        provenance=_provenance(predictor, facts),
    )
    cost = plan_cost(
        plan,
        profile.shape,
        profile.n_tokens,
        profile.n_text,
        profile.layer_ms,
        profile.executor_ms,
    )
    return replace(plan, cost=cost)


def _provenance(predictor: Predictor, facts: Mapping[str, Any]) -> dict[str, Any]:
    known, sizes = predictor.profile.provenance, predictor.profile.input_sizes
    data, wish = known.get("data"), known.get("samples")
    if isinstance(data, Mapping) and isinstance(wish, Mapping):
        data = {**wish, **data}  # all that it takes to draw others of the same data
    found = {
        "tpcal": tpcal.__version__,
        "libraries": {name: v for name in LIBRARIES if (v := _version(name))},
        "profile": predictor.profile.digest,
        "dtype": known.get("dtype"),
        "engine": predictor.engine_name,
        "data": data,
        KEY: sizes and sizes.to_data(),
        **facts,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {name: redacted_data(value) for name, value in found.items() if value is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {group: round(value, 6) for group, value in values.items()}
