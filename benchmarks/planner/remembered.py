"""Measuring plans from memory: a plan that any run measured before is read from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.planner import world
from tpcal.plans.plan_records import Cut


@dataclass
class Remembered:
    """Measures plans as `Measurer` does, with losses that are kept on disk.

    Attributes:
        kept: `world.losses`, remembered.
        n: Number of samples.
        seed: Of the samples.
        start: Samples of the seed that come before them.
        groups: Names of the groups.
        sample_group: [n] the group of each sample.
        fingerprint: Hash of all samples drawn.
    """

    kept: Callable[..., Any]
    n: int
    seed: int
    start: int = 0

    def __post_init__(self) -> None:
        drawn = world.samples(world.CALIBRATION, self.start + self.n, self.seed)
        own = drawn.sample_groups[self.start :]
        self.groups = tuple(group for group in drawn.groups if group in own)
        self.sample_group = np.array([self.groups.index(group) for group in own])
        self.fingerprint = drawn.fingerprint

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Any, Any, Any]]:
        """Sample numbers, nats and flips, in batches of two or more samples of each group."""
        nats, changed = self.kept(tuple(cuts), world.CALIBRATION, self.n, self.seed, self.start)
        for at in np.array_split(np.arange(self.n), max(1, self.n // len(self.groups) // 2)):
            yield at, nats[at], changed[at]
