"""Measuring plans from memory: a plan that any run measured before is read from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.planner import world
from tpcal.planner.prediction.objective import Objective
from tpcal.plans.plan_records import Cut


@dataclass
class Remembered:
    """Measures plans as `Measurer` does, with losses that are kept on disk.

    Attributes:
        kept: `world.losses`, remembered.
        n: Number of samples.
        seed: Of the samples.
        start: Samples of the seed that come before them.
        order: Every plan asked for, in order and without repeats, and its objective.
        groups: Names of the groups.
        sample_group: [n] the group of each sample.
        fingerprint: Hash of all samples drawn.
    """

    kept: Callable[..., Any]
    n: int
    seed: int
    start: int = 0
    order: dict[tuple[Cut, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        drawn = world.samples(world.CALIBRATION, self.start + self.n, self.seed)
        own = drawn.sample_groups[self.start :]
        self.groups = tuple(group for group in drawn.groups if group in own)
        self.sample_group = np.array([self.groups.index(group) for group in own])
        self.fingerprint = drawn.fingerprint

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Any, Any, Any]]:
        """Sample numbers, nats and flips, a batch of whole turns after another."""
        nats, changed = self.kept(tuple(cuts), world.CALIBRATION, self.n, self.seed, self.start)
        if tuple(cuts) not in self.order:
            means = [nats[self.sample_group == g].mean() for g in range(len(self.groups))]
            self.order[tuple(cuts)] = float(Objective().values(np.array(means), self.groups))
        for at in np.array_split(np.arange(self.n), max(1, self.n // len(self.groups) // 2)):
            yield at, nats[at], changed[at]
