"""Where a model can do without the image: the loss of dropping all before each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.planner import world
from benchmarks.planner.found import Folders
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work
from tpcal.calibrate.drop_all_depth import drop_all_curve, safe_depth

Curve = Mapping[int, float]


@dataclass(frozen=True)
class Depth:
    """Losses of dropping all before each layer, in nats per answer token; means of all seeds."""

    whole: Curve
    groups: Mapping[str, Curve]

    def worst(self, layer: int) -> float:
        """Of the group that loses most before this layer."""
        return max(curve[layer] for curve in self.groups.values())

    @property
    def safe(self) -> int | None:
        """First layer from which every group loses less than 0.01 nats."""
        return safe_depth({layer: self.worst(layer) for layer in self.whole})


def depth(work: Work, sizes: Sizes, folders: Folders) -> Depth:
    """Measures what dropping all before each layer loses."""
    calls = [(sizes.profile, seed, folders.profiles, world.DROP_ALL) for seed in sizes.study_seeds]
    found = work.each(_curves, calls, "drop-all curves")
    means = {group: _mean([curves[group] for curves in found]) for group in found[0]}
    return Depth(means.pop(None), means)


def _curves(n: int, seed: int, folder: Path, probes: str) -> dict[str | None, Curve]:
    """The curve of all samples, whose key is None, and that of every group."""
    profile = world.calibrated(n, seed, folder, probes)
    return {group: drop_all_curve(profile, group) for group in (None, *profile.groups)}


def _mean(curves: Sequence[Curve]) -> Curve:
    return {layer: float(np.mean([curve[layer] for curve in curves])) for layer in curves[0]}
