"""The page's table of what tpcal's plans lose beside the best plans that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.planner import page, world
from benchmarks.planner.comparison import searches
from benchmarks.planner.exhaustive import path_of
from benchmarks.planner.found import Folders
from benchmarks.planner.intervals import interval, overall_difference, p_paired, within_groups
from benchmarks.planner.plan_figures import right
from benchmarks.planner.sizes import BUDGETS, ELSEWHERE, Sizes
from benchmarks.planner.work import NotMeasured, Work
from tpcal.planner.prediction.objective import Objective
from tpcal.plans.plan_file import load_plan
from tpcal.plans.plan_records import Cuts

Texts = Sequence[str]
"""Answers to the questions of the test split."""
HEADINGS = ("layer average", "best known: right", "tpcal: right", "regret, points", "p")
HEADINGS_NATS = ("best known: nats", "tpcal: nats", "regret, nats")
_SEED = 2 * ELSEWHERE
"""Of the samples that measure nats here; no search and no effort draws them."""


def run(work: Work, sizes: Sizes, folders: Folders) -> dict[str, str]:
    """Measures, and returns the part of the page."""
    known = {
        target: load_plan(path).cuts
        for target in BUDGETS
        if (path := path_of(work.model, work.merge, target)).exists()
    }
    if not known:
        raise NotMeasured("no best plans of the model are kept; see benchmarks.planner.exhaustive")
    found = work.together(searches(sizes, folders, known), "plans by budget")
    asked = [(cuts, sizes.held_out, work.merge) for cuts in known.values()]
    answers = work.each(world.answers, asked, "best")
    rows = []
    for (target, best), of_best in zip(known.items(), answers, strict=True):
        ours = [(cuts, texts) for own, cuts, texts in found if own.target == target]
        points = _points(of_best, [texts for _, texts in ours], sizes)
        nats = _nats(work, sizes, best, [cuts for cuts, _ in ours])
        rows.append([f"{target:.2f}", *points, *nats])
    return {"regret": page.table([*HEADINGS, *HEADINGS_NATS], rows)}


def _points(best: Texts, found: Sequence[Texts], sizes: Sizes) -> list[str]:
    """Right answers of both, and the difference in points of the mean of the seeds."""
    names = np.array(world.samples(world.TEST, sizes.held_out, 0).sample_groups)
    of_best = np.array(right(best, sizes), dtype=float)
    ours = np.array([right(texts, sizes) for texts in found], dtype=float)
    mean = ours.mean(axis=0)
    lost = overall_difference(100 * of_best, 100 * mean, names, sizes.resamples)
    seeds = ours.mean(axis=1)
    spread = f"{mean.mean():.1%} ({seeds.min():.1%} to {seeds.max():.1%})"
    return [f"{of_best.mean():.1%}", spread, lost.show(".1f"), f"{p_paired(of_best, mean):.2g}"]


def _nats(work: Work, sizes: Sizes, best: Cuts, ours: Sequence[Cuts]) -> list[str]:
    """The objective of both on other samples, and its difference."""
    where = world.CALIBRATION, sizes.held_out, _SEED
    lost = work.each(world.losses, [(cuts, *where) for cuts in (best, *ours)], "losses")
    nats = np.stack([one for one, _ in lost])  # [1 + seeds, n]
    names = np.array(world.samples(*where).sample_groups)
    groups = np.unique(names).tolist()

    def scores(members: Sequence[np.ndarray]) -> np.ndarray:
        means = np.stack([nats[:, at].mean(axis=-1) for at in members], axis=-1)
        return Objective().values(means, groups)  # [1 + seeds, ...]

    def regret(members: Sequence[np.ndarray]) -> np.ndarray:
        of_best, *of_ours = scores(members)
        return np.asarray(np.mean(of_ours, axis=0) - of_best)

    of_best, *of_ours = scores([np.flatnonzero(names == group) for group in groups])
    more = interval(within_groups(regret, names, sizes.resamples))
    spread = f"{np.mean(of_ours):.3f} ({min(of_ours):.3f} to {max(of_ours):.3f})"
    return [f"{of_best:.3f}", spread, more.show()]
