"""What all planners work with: schedules of token counts, and measured losses with their cost.

The cost of finding a plan is counted in passes: one is the work that one unpruned sample's visual
tokens cause in all decoder layers. A plan at a layer average of 0.22 takes 0.22 passes a sample,
and a gradient takes twice as many as the run that it is taken of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner import world
from tpcal.calibrate.inputs.samples import Samples
from tpcal.plans.budget_projection import exact_keep
from tpcal.plans.plan_records import Cut

Counts = Sequence[int]
"""[L] visual tokens that enter each layer; they never rise."""
ATTENTION = "attention"
"""The selector of the published planners, which rank tokens by attention. It is read in the layer
before a cut, so that layer 0 gets all tokens."""
CONTENT = "coverage"
"""A selector of tpcal that ranks tokens by content, so that cuts before layer 0 are possible."""
Chooser = Callable[[Samples], NDArray[np.intp]]
"""Returns the [n] indices of the samples' schedules."""


@dataclass(frozen=True)
class Adaptive:
    """Schedules of which every sample gets one, by what a planner sees in its prompt."""

    schedules: Sequence[Counts]
    choose: Chooser


@dataclass
class Calibration:
    """The samples that a planner may use, and how much it ran the model on them.

    Attributes:
        n: Number of samples.
        seed: Seed of the samples.
        target: Layer average of keep that the plan may have.
        selector: Chooses the tokens of every cut.
        passes: Work so far.
        losses: Measures a plan, as `world.losses`; a benchmark passes one that remembers plans,
            so that a planner which was stopped need not run the model again.
    """

    n: int
    seed: int
    target: float
    selector: str = ATTENTION
    passes: float = 0.0
    losses: Callable[..., Any] = world.losses
    _known: dict[tuple[Cut, ...], NDArray[np.floating]] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers, L."""
        return world.n_layers()

    @property
    def n_tokens(self) -> int:
        """Visual tokens of a sample, N."""
        return world.n_tokens()

    @property
    def first(self) -> int:
        """The first layer before which the selector can drop tokens."""
        return int(self.selector == ATTENTION)

    @property
    def allowed(self) -> int:
        """Token-layers within the budget."""
        return int(self.target * self.n_tokens * self.n_layers + 1e-9)

    def cuts(self, counts: Counts) -> tuple[Cut, ...]:
        """The cuts that leave these counts."""
        return cuts_of(counts, self.n_tokens, self.selector)

    def each(self, counts: Counts) -> NDArray[np.floating]:
        """[n] KL divergences of the answers in nats, each limited as in a search of tpcal."""
        cuts = self.cuts(counts)
        if cuts not in self._known:
            self._known[cuts], _ = self.losses(cuts, world.CALIBRATION, self.n, self.seed)
            self.passes += self.n * sum(counts) / (self.n_tokens * self.n_layers)
        return self._known[cuts]

    def loss(self, counts: Counts) -> float:
        """The mean of `each`."""
        return float(self.each(counts).mean())


Planner = Callable[[Calibration], Counts]
AdaptivePlanner = Callable[[Calibration], Adaptive]


def cuts_of(counts: Counts, n_tokens: int, selector: str = ATTENTION) -> tuple[Cut, ...]:
    """The cuts that leave these counts: one wherever a layer gets fewer tokens than the last."""
    before, cuts = n_tokens, []
    for layer, count in enumerate(counts):
        if count < before:
            keep = exact_keep(count, n_tokens) if count else 0.0
            cuts.append(Cut(layer, keep, selector) if count else Cut(layer, 0.0))
        before = count
    return tuple(cuts)


def within(shares: NDArray[np.float64], given: Calibration) -> Counts:
    """Counts of shares [L] of the tokens, rounded down; all tokens where no cut is possible."""
    counts = np.floor(np.minimum.accumulate(np.clip(shares, 0, 1)) * given.n_tokens + 1e-9)
    counts[: given.first] = given.n_tokens
    return tuple(int(count) for count in counts)


def largest(made: Callable[[float], Counts], given: Calibration, most: float) -> Counts:
    """The counts of the largest argument in [0, most] that are within the budget.

    Args:
        made: Counts by argument; they never fall while it rises.
        given: The calibration, whose budget holds.
        most: Largest argument.

    Raises:
        ValueError: Not even the argument 0 is within the budget.
    """
    low, high = 0.0, most
    if sum(made(0.0)) > given.allowed:
        raise ValueError(f"No schedule of this form is within {given.target:g}.")
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(made(middle)) <= given.allowed else (low, middle)
    return made(low)
