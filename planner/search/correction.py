"""Corrects the prediction by what measured plans have lost."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.budget_projection import spent
from tpcal.plans.schema import Cut, Plan

Floats = NDArray[np.float64]
Cuts = tuple[Cut, ...]

FEWEST = 12
"""Number of measured plans below which the prediction is not corrected."""
MOST_PLANS = 160
"""Most plans to learn from, the nearest in cost. Time grows with the cube of their number."""
_TINY = 1e-3  # nats; what lies below is noise


class Correction:
    """Predicted objective of plans, corrected by a Gaussian process on measured ones.

    It learns the logarithm of measured over predicted from what the prediction leaves out: how
    far its two readings (`Predictor.losses`, `Predictor.deepest`) differ, how many tokens enter
    each quarter of the decoder, which selector drops how many, and how many cuts there are.

    Args:
        predictor: Gives the prediction to correct.
        measured: Objective of plans that were measured, in nats.
        near: Layer average of keep that matters; plans far from it are left out first.
    """

    def __init__(
        self, predictor: Predictor, measured: Mapping[Cuts, float], near: float = 0.0
    ) -> None:
        self._predictor = predictor
        self._names = sorted({option.selector for option in predictor.options})
        far = {cuts: abs(self._average(cuts) - near) for cuts in measured if cuts}
        self.plans = tuple(sorted(far, key=lambda cuts: far[cuts])[:MOST_PLANS])
        self._model: Any = None
        if len(self.plans) >= FEWEST:
            self._fit([measured[cuts] for cuts in self.plans])

    def scores(self, plans: Sequence[Cuts], caution: float = 0.0) -> Floats:
        """[P] corrected objective of plans.

        Args:
            plans: What to predict.
            caution: Standard errors added to the logarithm; below 0 unknown regions look better.
        """
        if not plans:
            return np.zeros(0)
        features, log = self._features(plans)
        if self._model is None:
            return np.asarray(np.exp(log))
        # score = predicted * exp(mean + caution * error), the mean and error of the process.
        mean, error = self._model.predict(features, return_std=True)
        return np.asarray(np.exp(log + mean + caution * error))

    def _fit(self, measured: Sequence[float]) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        # The target is log((measured + t) / (predicted + t)), t = _TINY: a factor, not a sum, as
        # losses span orders of magnitude. Length scales of 0.5 or more keep
        # the process from fitting noise; WhiteKernel is the noise of the measurement.
        features, log = self._features(self.plans)
        kernel = ConstantKernel(0.3) * Matern(3.0, (0.5, 50.0), nu=2.5) + WhiteKernel(0.1)
        process = GaussianProcessRegressor(kernel, normalize_y=True)
        self._model = make_pipeline(StandardScaler(), process)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound
            self._model.fit(features, np.log(np.asarray(measured) + _TINY) - log)

    def _features(self, plans: Sequence[Cuts]) -> tuple[Floats, Floats]:
        """[P, F] features and [P] logarithm of the prediction."""
        p, n = self._predictor, self._predictor.limits.n_tokens
        summed = p.objective.values([p.losses(cuts) for cuts in plans], p.groups)
        deepest = p.objective.values([p.deepest(cuts) for cuts in plans], p.groups)
        log = np.log(summed + _TINY)
        # Square roots spread out the quarters with few tokens, where a token counts most.
        rows = []
        for cuts in plans:
            schedule = np.array(Plan(cuts=cuts).schedule(n, p.limits.n_layers)) / max(n, 1)
            quarters = [float(part.mean()) for part in np.array_split(schedule, 4) if part.size]
            rows.append([len(cuts), *np.sqrt(quarters), *self._dropped(cuts)])
        return np.column_stack([log, np.log(deepest + _TINY) - log, np.array(rows)]), log

    def _dropped(self, cuts: Cuts) -> list[float]:
        """Share of all tokens that each selector drops."""
        shares, before = dict.fromkeys(self._names, 0.0), 1.0
        for cut in cuts:
            if cut.selector in shares:
                shares[cut.selector] += before - cut.keep
            before = cut.keep
        return list(shares.values())

    def _average(self, cuts: Cuts) -> float:
        n, n_layers = self._predictor.limits.n_tokens, self._predictor.limits.n_layers
        return spent(cuts, n, n_layers) / max(1, n * n_layers)
