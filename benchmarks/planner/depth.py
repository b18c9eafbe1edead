"""Where a model can do without the image: the loss of dropping all before each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.planner import world
from benchmarks.planner.found import Folders
from benchmarks.planner.sizes import Sizes
from benchmarks.planner.work import Work
from tpcal.calibrate.drop_all_depth import drop_all_curve, safe_depth
from tpcal.calibrate.profile import Profile

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
    calls = [(sizes.profile, seed, folders.profiles, world.DROP_ALL) for seed in sizes.seeds]
    work.each(world.calibrate, calls, "drop-all curves")
    profiles = [world.calibrated(*call) for call in calls]
    groups = {group: _mean(profiles, group) for group in profiles[0].groups}
    return Depth(_mean(profiles, None), groups)


def _mean(profiles: list[Profile], group: str | None) -> Curve:
    curves = [drop_all_curve(profile, group) for profile in profiles]
    return {layer: float(np.mean([curve[layer] for curve in curves])) for layer in curves[0]}
