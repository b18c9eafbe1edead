"""Answers of tpcal's plans and of everything else there is, at equal layer averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import found, world
from benchmarks.planner.found import Asked, Folders
from benchmarks.planner.published import SCHEDULES, at_budget
from benchmarks.planner.sizes import BUDGETS, Sizes
from benchmarks.planner.work import Call, Work, code
from tpcal.calibrate.evaluation.accuracy import compare
from tpcal.calibrate.evaluation.variants import Impossible
from tpcal.plans.budget_projection import exact_keep
from tpcal.plans.cost import layer_average_keep
from tpcal.plans.errors import BudgetError
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors import min_layer

Floats = NDArray[np.float64]
OURS = "tpcal"
SINGLE = {
    "VisionZip": "visionzip",
    "VisPruner": "vispruner",
    "SparseVLM": "sparsevlm",
    "random": "random",
    "grid": "grid",
    "pooling": "pooling",
}
"""One cut at the earliest layer the selector works at."""
DOWNSIZED = "smaller image"
BASELINES = ("random", "grid", "pooling", DOWNSIZED)
"""All but these are published methods."""
RANDOM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Entry:
    """One way to answer with fewer tokens."""

    method: str
    target: float
    seed: int
    cuts: tuple[Cut, ...] | None
    """The cuts; None if the method shows a smaller image."""
    size: tuple[int, int] = (0, 0)
    """Rows and columns of patches of a smaller image."""


@dataclass(frozen=True, eq=False)
class Answered:
    """What an entry's answers are worth; R entries of one method are one, seed by seed."""

    method: str
    target: float
    reached: float
    right: NDArray[np.bool_]  # [R, n]
    agrees: NDArray[np.bool_]  # [R, n] the unpruned model says the same


@dataclass(frozen=True, eq=False)
class Comparison:
    """All answers to n questions that nothing has been calibrated on."""

    groups: tuple[str, ...]
    sample_group: NDArray[np.int64]  # [n]
    unpruned: NDArray[np.bool_]  # [n] right
    answered: tuple[Answered, ...]
    impossible: Mapping[tuple[str, float], str]
    """Method and budget -> why it cannot be that cheap."""
    plans: Mapping[tuple[float, int], tuple[Cut, ...]]
    """tpcal's, by budget and seed."""

    def by_group(self, right: NDArray[np.bool_]) -> Floats:
        """[R, G] accuracy of every group for each entry of [R, n]."""
        members = (self.sample_group == g for g in range(len(self.groups)))
        return np.stack([right[:, at].mean(axis=1) for at in members], axis=1)

    def worst(self, right: NDArray[np.bool_]) -> float:
        """Accuracy of the worst group: each entry of [R, n] has its own, and they are averaged."""
        return float(self.by_group(right).min(axis=1).mean())


def comparison(work: Work, sizes: Sizes, folders: Folders) -> Comparison:
    """Finds tpcal's plans, puts the others on the budgets, and lets all answer."""
    plans = work.together(searches(sizes, folders), "plans by budget")
    ours = [Entry(OURS, asked.target, asked.seed, cuts) for asked, cuts, _ in plans]
    others, impossible = _others()
    entries = [*ours, *others]
    unpruned, *given = work.together(without_plans(sizes), "answers")
    samples = world.samples(world.TEST, sizes.held_out, 0)
    judged = [
        compare(samples, unpruned, one) for one in (*(texts for _, _, texts in plans), *given)
    ]
    keys = dict.fromkeys((entry.method, entry.target) for entry in entries)
    answered = []
    for method, target in keys:
        at = [i for i, e in enumerate(entries) if (e.method, e.target) == (method, target)]
        right = np.stack([_known(judged[i].correct_plan) for i in at])
        agrees = np.stack([_known(judged[i].agree) for i in at])
        answered.append(Answered(method, target, _reached(entries[at[0]]), right, agrees))
    return Comparison(
        groups=judged[0].groups,
        sample_group=judged[0].sample_group,
        unpruned=judged[0].correct_unpruned,
        answered=tuple(answered),
        impossible=impossible,
        plans={(e.target, e.seed): e.cuts for e in ours if e.cuts is not None},
    )


def searches(sizes: Sizes, folders: Folders, targets: Iterable[float] = BUDGETS) -> list[Call]:
    """tpcal's plans for some budgets and their answers, which need its profiles."""
    asked = [Asked(sizes.profile, s, b, sizes.trials) for b in targets for s in sizes.seeds]
    planner = code("planner")
    return [(_ours, (one, folders, planner, sizes.held_out)) for one in asked]


def without_plans(sizes: Sizes) -> list[Call]:
    """The answers of the unpruned model and of the other methods, which need no profile."""
    entries, _ = _others()
    given = [(entry.cuts or (), entry.size) for entry in entries]
    return [(_answers, (*one, sizes.held_out)) for one in [((), (0, 0)), *given]]


def _known(values: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    assert values is not None, "compared with a plan"
    return values


def _others() -> tuple[list[Entry], dict[tuple[str, float], str]]:
    """Every other method on every budget, and the ones that cannot be that cheap."""
    entries, impossible = [], {}
    for method, budget in product((*SCHEDULES, *SINGLE, DOWNSIZED), BUDGETS):
        try:
            entries += _made(method, budget)
        except BudgetError as error:
            impossible[method, budget] = f"not below {error.reachable:.3f}"
        except Impossible as error:
            impossible[method, budget] = str(error)
    return entries, impossible


def _made(method: str, budget: float) -> list[Entry]:
    """One method on a budget; several draws of one that draws by chance."""
    n_tokens, n_layers = world.n_tokens(), world.n_layers()
    if method == DOWNSIZED:
        world.patch_pixels()  # raises Impossible if other sizes cannot be had
        return [Entry(method, budget, 0, None, patches(budget, n_tokens))]
    if method in SCHEDULES:
        return [Entry(method, budget, 0, at_budget(method, budget).cuts)]
    seeds = RANDOM_SEEDS if method == "random" else (0,)
    cuts = [single(SINGLE[method], budget, seed, n_tokens, n_layers) for seed in seeds]
    return [Entry(method, budget, seed, c) for seed, c in zip(seeds, cuts, strict=True)]


def single(
    selector: str, target: float, seed: int, n_tokens: int, n_layers: int
) -> tuple[Cut, ...]:
    """One cut of a selector as early as it works, on the budget.

    Raises:
        BudgetError: It works too late for the budget.
    """
    params = {"seed": seed} if selector == "random" else {}
    first = min_layer(selector, params)
    left = target * n_layers - first
    count = int(n_tokens * left / (n_layers - first) + 1e-9)
    if count < 1:
        least = (first + (n_layers - first) / n_tokens) / n_layers
        raise BudgetError(f"{selector} must have a budget of at least {least:.4f}.", least)
    return (Cut(first, exact_keep(count, n_tokens), selector, params),)


def patches(target: float, n_tokens: int) -> tuple[int, int]:
    """Rows and columns, as square as can be, of the largest image within the budget."""
    sides = range(1, round(n_tokens**0.5) + 1)
    fitting = [
        (h, w) for h in sides for w in (h, h + 1) if h * w <= target * n_tokens * (1 + 1e-9)
    ]
    return max(fitting, key=lambda size: size[0] * size[1])


def _ours(
    asked: Asked, folders: Folders, planner: str, n: int
) -> tuple[Asked, tuple[Cut, ...], tuple[str, ...]]:
    cuts = found.plan(asked, folders, planner)
    return asked, cuts, world.answers(cuts, n, world.measured.merge)


def _answers(cuts: tuple[Cut, ...], size: tuple[int, int], n: int) -> tuple[str, ...]:
    return world.answers(cuts, n) if size == (0, 0) else world.answers_downsized(*size, n)


def _reached(entry: Entry) -> float:
    """Layer average of keep."""
    n_tokens, n_layers = world.n_tokens(), world.n_layers()
    if entry.cuts is None:
        return entry.size[0] * entry.size[1] / n_tokens
    return layer_average_keep(Plan(entry.cuts).schedule(n_tokens, n_layers), n_tokens)
