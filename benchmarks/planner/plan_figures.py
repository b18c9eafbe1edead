"""The figures of a plan that was judged on samples which nothing was calibrated or searched on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.sizes import ELSEWHERE, Sizes
from tpcal.calibrate.evaluation.metrics import is_right
from tpcal.planner.prediction.objective import Objective


def by_group(losses: NDArray[Any], seed: int, sizes: Sizes) -> NDArray[np.float64]:
    """[G] means of losses [n] on other samples than those of the seed."""
    return world.by_group(losses, world.CALIBRATION, sizes.judged, seed + ELSEWHERE)


def objective(losses: NDArray[Any], seed: int, sizes: Sizes) -> float:
    """What a search minimises, of losses [n] on other samples than those of the seed."""
    groups = world.samples(world.CALIBRATION, sizes.judged, seed + ELSEWHERE).groups
    return float(Objective().values(by_group(losses, seed, sizes), groups))


def right(texts: Sequence[str], sizes: Sizes) -> list[bool]:
    """[n] which answers to the questions of the test split are right."""
    asked = zip(texts, world.samples(world.TEST, sizes.held_out, 0), strict=True)
    return [is_right(text, str(sample.answer)) for text, sample in asked]


def accuracy(texts: Sequence[str], sizes: Sizes) -> float:
    """Share of right answers to the questions of the test split."""
    return float(np.mean(right(texts, sizes)))
