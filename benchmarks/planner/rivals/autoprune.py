"""AutoPrune: a logistic curve over the layers for every sample, the flatter the more it tells.

Source:
    Wang et al. 2025, AutoPrune: Each Complexity Deserves a Pruning Policy (arXiv 2509.23931v2),
    of which the abstract was read, and their code (github.com/AutoLab-SAI-SJTU/AutoPrune).

Every sample gets its own schedule here, too, though a plan of tpcal is the same for all: a sample
counts with the loss and the answer that it has under its own. It differs from the published method
in five points. Tokens are ranked by the attention of the last prompt token when the plan runs, and
dropped ones are not merged into clusters. The image's attention in the vision tower drops none
before. The mutual information is read in layer 0; theirs in layer 1 of 32, after a first cut that
is the same for all samples. Slopes are multiples of `STEP`. The two numbers that make a slope of
the information, and where the curve falls, are those with the smallest loss of the calibration
samples; theirs were chosen for LLaVA, whose information has another scale.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.rivals.attention import information_of
from benchmarks.planner.rivals.schedule import Adaptive, Calibration, Counts, largest, within
from tpcal.calibrate.inputs.samples import Samples

Floats = NDArray[np.float64]
DEPTH = 32
"""Layers of the decoder that slopes and positions are given for."""
STEP = 0.1
SLOPES = np.arange(9) * STEP
"""Of the curve, per layer of `DEPTH`; the published ones are at most 0.4."""
POSITIONS = (5.0, 10.0, 14.9)
"""Layer of `DEPTH` at which half of the curve is left; the published one is 14.9."""
STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4)
"""By how much the slope falls if the information is a standard deviation above its mean."""
MOST = 2.5
"""Share of the tokens that a layer after the first may get, in layer averages of the budget."""


def plan(given: Calibration) -> Adaptive:
    """The curves of all slopes, and the best way from the information to a slope."""
    information = information_of(world.samples(world.CALIBRATION, given.n, given.seed))
    given.passes += given.n
    mean, spread = information.mean(), max(information.std(), 1e-12)
    found = []
    for position in POSITIONS:
        curves = [_counts(given, slope, position) for slope in SLOPES]
        losses = np.stack([given.each(counts) for counts in curves])  # [slopes, n]
        for level, strength in product(SLOPES, STRENGTHS):
            own = _index(level - strength * (information - mean) / spread)
            found.append((losses[own, np.arange(given.n)].mean(), level, strength, curves))
    _, level, strength, curves = min(found, key=lambda way: way[0])

    def choose(samples: Samples) -> NDArray[np.intp]:
        return _index(level - strength * (information_of(samples) - mean) / spread)

    return Adaptive(curves, choose)


def _index(slopes: Floats) -> NDArray[np.intp]:
    """[n] which of the slopes is nearest."""
    return np.clip(np.rint(slopes / STEP), 0, len(SLOPES) - 1).astype(np.intp)


def _counts(given: Calibration, slope: float, position: float) -> Counts:
    """The curve, by a factor so high that the budget is spent."""
    layers = np.arange(given.n_layers) * DEPTH / given.n_layers
    curve = 1 / (1 + np.exp(slope * (layers - position)))

    def at(factor: float) -> Counts:
        return within(np.minimum(factor * curve, MOST * given.target), given)

    return largest(at, given, 1 / curve.min())
