"""How well the loss of plans is predicted, judged on measured plans of every budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.planner import draws, world
from benchmarks.planner.intervals import Interval, interval, resampled, within_groups
from benchmarks.planner.sizes import BUDGETS, ELSEWHERE, Sizes
from benchmarks.planner.work import Work, code
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.prediction.predict import Predictor, added
from tpcal.plans.plan_records import Cut, n_keep

Floats = NDArray[np.float64]
OBJECTIVE = Objective()
PLAIN = "sample by sample"
WHOLE = "the same, from the full grid"
"""The prediction that a search starts from."""


@dataclass(frozen=True, eq=False)
class Measured:
    """P plans with what they lose on n samples that no profile has seen."""

    groups: tuple[str, ...]
    sample_group: NDArray[np.int64]  # [n]
    budget: Floats  # [P]
    cuts: tuple[tuple[Cut, ...], ...]
    nats: NDArray[np.float32]  # [P, n]
    changed: NDArray[np.bool_]  # [P, n] whether any token of the answer changes
    answer_tokens: NDArray[np.int64]  # [n] distributions of each answer
    losses: Floats  # [P, G]

    @property
    def score(self) -> Floats:
        """[P] what a search would minimise."""
        return OBJECTIVE.values(self.losses, self.groups)


def measured(work: Work, sizes: Sizes, profiles: Path) -> Measured:
    """Draws the plans and measures them."""
    kind = (sizes.profile, profiles)
    drawn = work.each(
        _drawn, [(b, sizes.plans, *kind, code("planner")) for b in BUDGETS], "plans drawn"
    )
    plans = [plan.cuts for of_budget in drawn for plan in of_budget]
    where = (world.CALIBRATION, sizes.plan_samples, ELSEWHERE)
    found = work.each(world.losses, [(c, *where) for c in plans], "plans")
    nats, changed = (np.stack(arrays) for arrays in zip(*found, strict=True))
    samples = world.samples(*where)
    return Measured(
        groups=samples.groups,
        sample_group=np.array([samples.groups.index(g) for g in samples.sample_groups]),
        budget=np.repeat(BUDGETS, sizes.plans),
        cuts=tuple(plans),
        nats=nats,
        changed=changed,
        answer_tokens=world.answer_tokens(*where),
        losses=world.by_group(nats, *where),
    )


def _drawn(target: float, n: int, n_profile: int, folder: Path, planner: str) -> list[draws.Drawn]:
    return draws.plans(target, n, n_profile, folder)


def sum_of_means(predictor: Predictor, cuts: Sequence[Cut]) -> float:
    """The prediction that dynamic programming adds up: means of groups, limited afterwards."""
    n = predictor.limits.n_tokens
    tables = predictor.tables("kl").at(range(n + 1))
    total, before = np.zeros(len(predictor.groups)), n
    for cut in cuts:
        count = min(before, n_keep(cut.keep, n))
        s = predictor.index(cut.selector, cut.params)
        if count == before or cut.condition is not None:
            continue
        if before == n:
            total += tables.first[s, :, cut.layer, count]
        else:
            later = tables.later[s, :, cut.layer].T  # [N + 1, G]
            total += added(later.__getitem__, before, count, n)
        before = count
    return float(OBJECTIVE.values(total, predictor.groups))


PREDICTIONS: dict[str, Callable[[Predictor, Sequence[Cut]], float]] = {
    "sum of group means": sum_of_means,
    PLAIN: Predictor.score,
}


def predicted(work: Work, sizes: Sizes, profiles: Path, plans: Measured) -> dict[str, Floats]:
    """[P] what every prediction says of the plans, by its name."""
    where = (sizes.calibrated, sizes.profile, profiles, code("planner"))
    names = [*PREDICTIONS, WHOLE]
    found = work.each(_predicted, [(name, plans.cuts, *where) for name in names], "predictions")
    return dict(zip(names, found, strict=True))


def _predicted(
    name: str, plans: Sequence[tuple[Cut, ...]], n: int, n_profile: int, folder: Path, planner: str
) -> Floats:
    if name == WHOLE:
        predictor = Predictor(world.first(world.calibrated(n, 0, folder), n_profile))
        return np.array([predictor.score(cuts) for cuts in plans])
    predictor = world.predictor(n_profile, 0, folder)
    return np.array([PREDICTIONS[name](predictor, cuts) for cuts in plans])


@dataclass(frozen=True)
class Verdict:
    """How good a prediction was on the plans of one budget."""

    spearman: Interval
    better_half: Interval
    """Spearman among the plans that lose less than the median."""
    regret: Interval
    """Nats that the plan of the smallest prediction loses more than the best measured one."""


def judge(plans: Measured, predictions: Floats, budget: float, n_resamples: int) -> Verdict:
    """What [P] predictions are worth for the plans of one budget."""
    (at,) = np.nonzero(plans.budget == budget)
    predicted, score = predictions[at], plans.score[at]
    half = score <= np.median(score)
    return Verdict(
        spearman=interval(rank_correlation(predicted, score, n_resamples)),
        better_half=interval(rank_correlation(predicted[half], score[half], n_resamples)),
        regret=interval(regret(plans, at, predicted, n_resamples)),
    )


def rank_correlation(one: Floats, other: Floats, n_resamples: int) -> tuple[float, Floats]:
    """Spearman's, and what it is on resampled plans."""
    return resampled(_spearman, (one, other), n_resamples)


def _spearman(one: Floats, other: Floats) -> float:
    """0 where all are alike: equal figures have no order."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def regret(
    plans: Measured, at: NDArray[np.int64], predicted: Floats, n_resamples: int
) -> tuple[float, Floats]:
    """What the chosen plan loses more than the best of these, and that on resampled samples.

    Every resample has its own best plan, as chance decides which one is measured to be the best.
    """
    chosen = int(np.argmin(predicted))

    def more(drawn: Sequence[NDArray[np.int64]]) -> Floats:
        means = [plans.nats[at][:, own].mean(axis=-1) for own in drawn]
        scores = OBJECTIVE.values(np.stack(means, axis=-1), plans.groups)  # [P, ...]
        return np.asarray(scores[chosen] - scores.min(axis=0))

    return within_groups(more, plans.sample_group, n_resamples)
