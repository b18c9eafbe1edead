"""The objective of a search: one number from the losses of all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpcal.plans.errors import UsageError, listed

MOST = 1.0
"""Largest loss of one sample in nats per answer token; larger losses count as this one.

Above it the answer is lost, and the exact value is chance. Without this limit, single samples
would decide which group is the worst."""
WORST_SHARES = {"mean": 0.0, "mixed": 0.25, "worst": 1.0}
"""Share of the worst group's loss in each objective; the rest is the mean."""
MIXED = "mixed"
"""The objective of a search that names none."""


@dataclass(frozen=True)
class Objective:
    """A share of the loss of the worst group plus the rest of the mean loss of all groups.

    With shares a_g of sum 1, losses D_g of G groups and w = `worst_share`, the objective is

        J = w * max_g (G * a_g * D_g) + (1 - w) * sum_g (a_g * D_g).

    The worst group prevents plans that ruin one skill, such as reading, while the mean looks fine.
    By default it has a quarter. More makes the choice worse, even by the worst group's loss on
    other samples: it is the largest of many means over few samples each. It also cannot
    distinguish two plans that ruin the same group if one of them spares all other groups.
    docs/planner.md has the measurement.

    Attributes:
        weights: Weight of the loss of each named group; groups that are not named have weight 1.
        name: One of `WORST_SHARES`.

    Raises UsageError if the name is unknown.

    Example:
        >>> from tpcal.planner.prediction.objective import Objective
        >>> losses = {"colour": 0.1, "count": 0.3}
        >>> [round(Objective(name=name).of(losses), 3) for name in ("mean", "mixed", "worst")]
        [0.2, 0.225, 0.3]
    """

    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    name: str = MIXED

    def __post_init__(self) -> None:
        if self.name not in WORST_SHARES:
            raise UsageError(f"An objective must be {listed([*WORST_SHARES])}; got {self.name}.")

    @property
    def worst_share(self) -> float:
        """Share of the worst group's loss."""
        return WORST_SHARES[self.name]

    @property
    def text(self) -> str:
        """What it adds up, in words."""
        worst, mean = "the loss of the worst group", "the mean loss of all groups"
        mixed = f"{100 * self.worst_share:g} % of {worst}, the rest of {mean}"
        said = {0.0: mean, 1.0: worst}.get(self.worst_share, mixed)
        return f"{said}, weighed by group" if self.weights else said

    @property
    def facts(self) -> dict[str, Any]:
        """What plans and fronts record of it."""
        return {"objective": self.name, "weights": dict(self.weights) or None}

    def check(self, groups: Sequence[str]) -> None:
        """Raises UsageError if the weights do not fit these groups.

        Raises:
            UsageError: If a group is unknown, or a weight is not a positive finite number.
        """
        for group, weight in self.weights.items():
            if group not in groups:
                raise UsageError(f"Weights must be of {listed(groups)}; got {group}.")
            if not 0 < weight < np.inf:
                raise UsageError(f"The weight of {group} must be above 0; got {weight:g}.")

    def of(self, losses: Mapping[str, float]) -> float:
        """The objective of losses in nats, by group name."""
        return float(self.values(list(losses.values()), tuple(losses)))

    def values(self, losses: ArrayLike, groups: Sequence[str]) -> NDArray[np.float64]:
        """[...] objectives of losses [..., G] in nats, in the order of ``groups``."""
        shares = self.shares(groups)
        # The factor G gives both parts the same scale: equal losses D in all groups, with equal
        # weights, result in J = D.
        weighed = np.asarray(losses, dtype=np.float64) * shares
        worst, mean = weighed.max(axis=-1) * len(groups), weighed.sum(axis=-1)
        return np.asarray(self.worst_share * worst + (1 - self.worst_share) * mean)

    def shares(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """[G] the weights of the groups, scaled to a sum of 1."""
        weights = np.array([self.weights.get(group, 1.0) for group in groups], dtype=np.float64)
        return np.asarray(weights / weights.sum())
