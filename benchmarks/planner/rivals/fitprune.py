"""FitPrune: the schedule that keeps an equal share of every layer's attention mass.

Source:
    Ye et al. 2024, Fit and Prune (arXiv 2409.10197), section "Fit pruning", and their code.

It differs from the published method in four points. Attention is that of the unpruned model in
every layer; theirs is recomputed after the layers before were pruned. Tokens are ranked by the
attention of the last prompt token when the plan runs; theirs by the product of what all text
tokens and what all visual tokens give. A selector that needs no attention drops a layer's tokens
before that layer instead of after it. The budget is a layer average of keep instead of FLOPs.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import world
from benchmarks.planner.rivals.attention import attention_of
from benchmarks.planner.rivals.schedule import Calibration, Counts, largest

Floats = NDArray[np.float64]


def plan(given: Calibration) -> Counts:
    """The counts of the smallest share of dropped mass that meets the budget.

    For a share a, each layer drops the tokens with the least attention from the text, as long as
    their mass stays below a of the layer's mass, and likewise by the attention from the image;
    those that both would drop leave for good.
    """
    maps = attention_of(world.samples(world.CALIBRATION, given.n, given.seed))
    given.passes += given.n
    return largest(partial(_counts, maps, given.first), given, 1.0)


def _counts(maps: tuple[Floats, Floats], first: int, kept: float) -> Counts:
    """[L] mean counts if each layer keeps the share ``kept`` of its attention mass.

    Args:
        maps: Attention from the text and from the image, [n, L, N] each.
        first: 1 if tokens leave after the layer whose attention drops them, 0 if before it.
        kept: Share of the mass.
    """
    text, visual = maps
    n, n_layers, n_tokens = text.shape
    alive = np.ones((n, n_tokens), dtype=bool)
    counts = [n_tokens] * first
    for layer in range(n_layers - first):
        alive &= ~(_least(text[:, layer], alive, kept) & _least(visual[:, layer], alive, kept))
        counts.append(int(alive.sum() / n))
    return tuple(counts)


def _least(mass: Floats, alive: NDArray[np.bool_], kept: float) -> NDArray[np.bool_]:
    """[n, N] the tokens alive that leave the share ``kept`` of the layer's whole mass behind."""
    left = np.where(alive, mass, 0.0)
    order = np.argsort(left, axis=1)
    # After a token is dropped, the mass of those with more attention has to reach the share.
    rest = left.sum(axis=1, keepdims=True) - np.cumsum(np.take_along_axis(left, order, 1), axis=1)
    fits = rest >= kept * mass.sum(axis=1, keepdims=True)
    dropped = np.zeros_like(alive)
    np.put_along_axis(dropped, order, fits, axis=1)
    return dropped
