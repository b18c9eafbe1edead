"""What a search minimises: one number from the losses of all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpcal.plans.errors import UsageError, listed

MOST = 1.0
"""Nats per answer token that a sample's loss counts at most: beyond them the answer is lost, and
how far beyond is chance. Without a limit single samples decide which group is the worst."""


@dataclass(frozen=True)
class Objective:
    """Half the worst group's loss, half the mean of all groups.

    The worst group keeps a plan from ruining reading while a mean looks fine. The worst alone is
    a poor guide, though: it is one group's mean over few samples, the largest of many such means,
    and where two plans ruin their worst group alike it cannot tell a plan that spares all others
    from one that does not. docs/planner.md has the measurement.

    Attributes:
        weights: What a group's loss counts beside that of groups that are not named, which is 1.
    """

    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def check(self, groups: Sequence[str]) -> None:
        """Nothing, where the weights are of these groups.

        Raises:
            UsageError: An unknown group, or a weight that is not a positive number.
        """
        for group, weight in self.weights.items():
            if group not in groups:
                raise UsageError(f"Weights must be of {listed(groups)}; got {group}.")
            if not 0 < weight < np.inf:
                raise UsageError(f"The weight of {group} must be above 0; got {weight:g}.")

    def of(self, losses: Mapping[str, float]) -> float:
        """The number, from nats per group."""
        return float(self.values(list(losses.values()), tuple(losses)))

    def values(self, losses: ArrayLike, groups: Sequence[str]) -> NDArray[np.float64]:
        """[...] the numbers, from nats [..., G] in the order of ``groups``."""
        shares = self.shares(groups)
        weighed = np.asarray(losses, dtype=np.float64) * shares
        return np.asarray((weighed.max(axis=-1) * len(groups) + weighed.sum(axis=-1)) / 2)

    def shares(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """[G] the weights, with a sum of 1."""
        weights = np.array([self.weights.get(group, 1.0) for group in groups], dtype=np.float64)
        return np.asarray(weights / weights.sum())
