"""The page's plot and tables of what calibration has to cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from benchmarks.planner import page, plots
from benchmarks.planner.economy import TARGET, VARIANTS, Quality, by_size, by_variant
from benchmarks.planner.found import LABELLED, PREDICTED, Asked, Folders, profile_of
from benchmarks.planner.page import Pictures
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work
from benchmarks.planner.world import FULL
from tpcal.planner.prediction.next_probes import work as work_of

HOW = {"searched": False, "predicted": True}
TITLES = {
    "both": "objective, nats",
    "mean": "mean of groups, nats",
    "worst": "worst group, nats",
    "changed": "answers changed",
}
Found = Mapping[Asked, Quality]


def run(work: Work, sizes: Sizes, folders: Folders, pictures: Pictures) -> dict[str, str]:
    """Measures, draws, and returns the parts of the page."""
    found = by_size(work, sizes, folders)
    _plot(found, sizes, pictures.path("samples"))
    variants = by_variant(work, sizes, folders)
    named = {
        f"{probes} ({_work(sizes, folders, probes, answers):.0%} of the work), {answers}": _of(
            {a: q for a, q in variants.items() if (a.probes, a.answers) == (probes, answers)}
        )
        for probes, answers in VARIANTS
    }
    return {
        "samples": _by_size(found, sizes),
        "samples-plot": pictures.line("samples", "Loss of the plan by calibration samples"),
        "variants": _table("probes, answers", named),
    }


def _work(sizes: Sizes, folders: Folders, probes: str, answers: str) -> float:
    """Work of the probes as a share of the full grid's, mean over seeds."""
    shares = []
    for seed in sizes.study_seeds:
        asked = Asked(sizes.variants, seed, TARGET, PREDICTED, answers, probes)
        profile = profile_of(asked, folders)
        whole = profile_of(replace(asked, probes=FULL, answers=LABELLED), folders)
        shares.append(sum(work_of(profile, profile.probes)) / sum(work_of(whole, whole.probes)))
    return float(np.mean(shares))


def _of(found: Found) -> Callable[[bool], list[Quality]]:
    def qualities(predicted: bool) -> list[Quality]:
        return [q for asked, q in found.items() if (asked.n_trials == PREDICTED) == predicted]

    return qualities


def _by_size(found: Found, sizes: Sizes) -> str:
    def at(n: int) -> Callable[[bool], list[Quality]]:
        return _of({asked: q for asked, q in found.items() if asked.n == n})

    return _table("samples", {str(n): at(n) for n in sizes.economy})


def _table(first: str, rows: Mapping[str, Callable[[bool], list[Quality]]]) -> str:
    headings = [first, "plan", *TITLES.values()]
    lines = []
    for name, qualities in rows.items():
        for how, predicted in HOW.items():
            figures = [[getattr(q, key) for q in qualities(predicted)] for key in TITLES]
            lines.append([name if how == "searched" else "", how, *map(_spread, figures)])
    return page.table(headings, lines, n_left=2)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def _plot(found: Found, sizes: Sizes, path: Path) -> None:
    keys = [field.name for field in fields(Quality) if field.name != "both"]
    with plots.figure(path, len(keys), width=10.0) as panels:
        for panel, key in zip(panels, keys, strict=True):
            curves = {
                how: [
                    [getattr(found[_asked(n, s, sizes, predicted)], key) for n in sizes.economy]
                    for s in sizes.study_seeds
                ]
                for how, predicted in HOW.items()
            }
            plots.bands(panel, sizes.economy, curves)
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes.economy, [str(n) for n in sizes.economy])
            panel.set(title=TITLES[key], xlabel="calibration samples", ylim=(0, None))
        panels[0].legend(fontsize=8)


def _asked(n: int, seed: int, sizes: Sizes, predicted: bool) -> Asked:
    trials = PREDICTED if predicted else sizes.economy_trials
    return Asked(n, seed, TARGET, trials, probes=FULL)
