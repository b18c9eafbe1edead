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


def objective(losses: NDArray[Any], seed: int, sizes: Sizes) -> float:
    """What a search minimises, of losses [n] on other samples than those of the seed."""
    where = world.CALIBRATION, sizes.judged, seed + ELSEWHERE
    groups = world.samples(*where).groups
    return float(Objective().values(world.by_group(losses, *where), groups))


def right(texts: Sequence[str], sizes: Sizes) -> list[bool]:
    """[n] which answers to the questions of the test split are right."""
    asked = zip(texts, world.samples(world.TEST, sizes.held_out, 0), strict=True)
    return [is_right(text, str(sample.answer)) for text, sample in asked]


def accuracy(texts: Sequence[str], sizes: Sizes) -> float:
    """Share of right answers to the questions of the test split."""
    return float(np.mean(right(texts, sizes)))
