"""VFlowOpt's search: the keeps of fixed stages, by Bayesian optimisation of a discrepancy.

Source:
    Yang et al. 2025, VFlowOpt (arXiv 2508.05211v2), section on visual information flow.

It differs from the published method in five points. Tokens are ranked by the attention of the last
prompt token; theirs by that of the vision tower and the entropy of patches, with weights that are
searched, too. Their first stage is therefore before the decoder, which only another selector makes
possible here. Dropped tokens are not recycled. The discrepancy is the KL divergence of the answers
instead of a distance of the last token's states. The first keep follows from the budget instead of
the last, which spends it exactly.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import optuna

from benchmarks.planner.rivals.schedule import Calibration, Counts, largest, within

N_TRIALS = 48
STAGES = (0.0, 1 / 3, 2 / 3)
"""Relative depths of the stages; the first one is the earliest at which tokens can be dropped."""


def plan(given: Calibration) -> Counts:
    """The counts of the best keeps."""
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=given.seed))
    study.optimize(partial(_loss, given), n_trials=N_TRIALS)
    return _counts(given, study.best_params)


def _loss(given: Calibration, trial: optuna.Trial) -> float:
    ratios = {f"ratio{i}": trial.suggest_float(f"ratio{i}", 0.0, 1.0) for i in (1, 2)}
    return given.loss(_counts(given, ratios))


def _counts(given: Calibration, ratios: dict[str, float]) -> Counts:
    """The largest first keep, of which later stages keep the given ratios one after another."""
    starts = [max(given.first, round(stage * given.n_layers)) for stage in STAGES]
    shares = np.ones(given.n_layers)
    shares[starts[1] :] *= ratios["ratio1"]
    shares[starts[2] :] *= ratios["ratio2"]

    def at(first: float) -> Counts:
        return within(first * shares, given)

    return largest(at, given, 1.0)
