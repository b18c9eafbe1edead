"""The page's tables and plots of how well losses are predicted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.planner import page, plots
from benchmarks.planner.fidelity import (
    PLAIN,
    Measured,
    judge,
    measured,
    predicted,
)
from benchmarks.planner.intervals import interval, resampled
from benchmarks.planner.objectives import JUDGES, RULES, judged
from benchmarks.planner.page import Pictures
from benchmarks.planner.sizes import BUDGETS, Sizes
from benchmarks.planner.work import Work

Floats = NDArray[np.float64]
N_BINS = 5
N_SPLITS = 200


def run(work: Work, sizes: Sizes, profiles: Path, pictures: Pictures) -> dict[str, str]:
    """Measures, draws, and returns the parts of the page."""
    plans = measured(work, sizes, profiles)
    predictions = predicted(work, sizes, profiles, plans)
    shown = predictions[PLAIN]
    _plot(plans, shown, pictures.path("fidelity"))
    return {
        "fidelity": _verdicts(plans, predictions, sizes),
        "fidelity-plot": pictures.line("fidelity", "Measured against predicted loss"),
        "calibration": _bins(plans, shown, sizes),
        "objective": _rules(plans),
    }


def _verdicts(plans: Measured, predictions: Mapping[str, Floats], sizes: Sizes) -> str:
    headings = ["layer average", "prediction", "Spearman", "better half", "regret, nats"]
    rows = []
    for budget in BUDGETS:
        score = plans.score[plans.budget == budget]
        for name, found in predictions.items():
            verdict = judge(plans, found, budget, sizes.resamples)
            figures = (verdict.spearman, verdict.better_half, verdict.regret)
            shown = f"{budget:.2f}" if name == next(iter(predictions)) else ""
            rows.append([shown, name, *(figure.show() for figure in figures)])
        best, median = float(score.min()), float(np.median(score))
        rows[-len(predictions)][0] += (
            f" ({len(score)} plans; best {best:.3f}, median {median:.3f})"
        )
    return page.table(headings, rows, n_left=2)


def _bins(plans: Measured, predicted: Floats, sizes: Sizes) -> str:
    """Predicted and measured loss of fifths of the plans, by what is predicted."""
    headings = ["fifth", "predicted", "measured", "measured / predicted"]
    rows, score = [], plans.score
    edges = np.quantile(predicted, np.linspace(0, 1, N_BINS + 1)[1:-1])
    fifth = np.digitize(predicted, edges)
    for i in range(N_BINS):
        one, other = predicted[fifth == i], score[fifth == i]
        ratio = resampled(lambda a, b: b.mean() / a.mean(), (one, other), sizes.resamples)
        means = [f"{x.mean():.3f}" for x in (one, other)]
        rows.append([str(i + 1), *means, interval(ratio).show(".2f")])
    slope = resampled(
        lambda a, b: stats.linregress(a, b).slope, (predicted, score), sizes.resamples
    )
    rows.append(["slope of all", "", "", interval(slope).show(".2f")])
    return page.table(headings, rows)


def _rules(plans: Measured) -> str:
    """What choosing by different numbers on half of the samples gives on the other half."""
    headings = ["layer average", "chosen by", *(f"{loss}, {name}" for loss, name in JUDGES)]
    rows = []
    for budget in BUDGETS:
        for rule, values in judged(plans, budget, N_SPLITS).items():
            figures = zip(values.mean(axis=0), values.std(axis=0), strict=True)
            cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in figures]
            shown = f"{budget:.2f}" if rule == RULES[0] else ""
            rows.append([shown, f"{rule.loss}, {rule.objective}", *cells])
    return page.table(headings, rows, n_left=2)


def _plot(plans: Measured, predicted: Floats, path: Path) -> None:
    with plots.figure(path, 1, width=4.4, height=3.8) as (panel,):
        score = plans.score
        for budget, colour in zip(BUDGETS, plots.COLOURS, strict=False):
            own = plans.budget == budget
            points = predicted[own], score[own]
            panel.scatter(*points, s=7, color=colour, alpha=0.6, lw=0, label=f"{budget:.2f}")
        top = float(max(score.max(), predicted.max()))
        panel.plot([0, top], [0, top], color=plots.GREY, linewidth=0.8)
        panel.set(xlabel="predicted, nats", ylabel="measured, nats")
        panel.legend(title="layer average", fontsize=8)
