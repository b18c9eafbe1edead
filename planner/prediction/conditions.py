"""Conditional drops: which samples they fire for, as far as the unpruned model tells.

What a conditional cut costs is known only once the model runs. The profile holds the attention
masses of the unpruned model, so a search can expect how often a threshold fires (ToDRE stage 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tpcal.plans.schema import Condition, Cut

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

ALWAYS = 0.995
"""Share of samples from which on a drop needs no condition."""


def fires(profile: Profile, cut: Cut) -> NDArray[np.bool_]:
    """[n] samples that a cut drops tokens of; all where it has no condition."""
    condition = cut.condition
    if condition is None:
        return np.ones(len(profile.sample_group), dtype=bool)
    found = np.asarray(profile.text_to_visual[:, cut.layer - 1] < condition.text_to_visual_below)
    if condition.visual_to_text_below is not None:
        found &= profile.visual_to_text[:, cut.layer - 1] < condition.visual_to_text_below
    return found


def share(profile: Profile, cut: Cut) -> float:
    """Share of the samples that a cut drops tokens of."""
    return float(fires(profile, cut).mean())


def dropping(profile: Profile, layer: int, wanted: float) -> Cut:
    """The drop-all before a layer that fires for about the ``wanted`` share of the samples."""
    if wanted >= ALWAYS:
        return Cut(layer, 0.0)
    masses = np.asarray(profile.text_to_visual[:, layer - 1], dtype=np.float64)
    return Cut(layer, 0.0, condition=Condition(round(float(np.quantile(masses, wanted)), 4)))


def useful(profile: Profile) -> bool:
    """Whether masses differ between samples, so that a threshold can tell some apart."""
    return bool(np.ptp(profile.text_to_visual, axis=0).max(initial=0.0) > 0)
