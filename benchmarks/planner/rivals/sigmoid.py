"""P-Sigmoid: a sigmoid of the depth, whose slope Bayesian optimisation finds.

Source:
    Zhao et al. 2024, Accelerating Multimodal Large Language Models by Searching Optimal Vision
    Token Reduction (arXiv 2412.00556), scenario II.

It differs from the published method in three points. The position of the sigmoid follows from the
budget, so that only its slope is searched; theirs searches both under a constraint. The search
does not begin with what a greedy search found for scenario I. The loss is tpcal's KL divergence of
the answers.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import optuna

from benchmarks.planner.rivals.schedule import Calibration, Counts, largest, within

N_TRIALS = 24
SLOPES = (0.5, 100.0)
"""Of the sigmoid over the relative depth: nearly a line, and nearly a step."""
_FLAT = 10.0
"""Argument at which a sigmoid has reached its limit."""


def plan(given: Calibration) -> Counts:
    """The counts of the best slope."""
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=given.seed))
    study.optimize(partial(_loss, given), n_trials=N_TRIALS)
    return _counts(given, study.best_params["slope"])


def _loss(given: Calibration, trial: optuna.Trial) -> float:
    return given.loss(_counts(given, trial.suggest_float("slope", *SLOPES, log=True)))


def _counts(given: Calibration, slope: float) -> Counts:
    """The sigmoid that falls as late as the budget allows."""
    falling = slope * np.arange(given.n_layers) / given.n_layers

    def at(position: float) -> Counts:
        # From a sigmoid that is nearly 0 everywhere to one that is nearly 1 everywhere.
        shift = position * (slope + 2 * _FLAT) - _FLAT
        return within(1 / (1 + np.exp(falling - shift)), given)

    return largest(at, given, 1.0)
