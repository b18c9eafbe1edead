"""Conditional drops: for which samples of a profile their condition holds.

The cost of a conditional cut is known only when the model runs. The profile holds the attention
masses of the unpruned model, from which the search estimates how often a threshold fires (ToDRE
stage 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tpcal.plans.plan_records import Condition, Cut

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

ALWAYS = 0.995
"""A drop that fires for this share of the samples or more is made unconditional."""


def fires(profile: Profile, cut: Cut) -> NDArray[np.bool_]:
    """[n] whether a cut fires for each sample; always true for a cut without a condition."""
    condition = cut.condition
    if condition is None:
        return np.ones(len(profile.sample_group), dtype=bool)
    # A condition is read at the layer before the cut, whose attention is known when it is decided.
    found = np.asarray(profile.text_to_visual[:, cut.layer - 1] < condition.text_to_visual_below)
    if condition.visual_to_text_below is not None:
        found &= profile.visual_to_text[:, cut.layer - 1] < condition.visual_to_text_below
    return found


def share(profile: Profile, cut: Cut) -> float:
    """The share of the samples for which a cut fires."""
    return float(fires(profile, cut).mean())


def dropping(profile: Profile, layer: int, wanted: float) -> Cut:
    """The drop-all before a layer that fires for about the ``wanted`` share of the samples."""
    if wanted >= ALWAYS:
        return Cut(layer, 0.0)
    # A threshold at the q-quantile of the masses lies above a share q of the samples.
    masses = np.asarray(profile.text_to_visual[:, layer - 1], dtype=np.float64)
    return Cut(layer, 0.0, condition=Condition(round(float(np.quantile(masses, wanted)), 4)))


def useful(profile: Profile) -> bool:
    """Whether the attention masses differ between samples, so that a threshold separates some."""
    return bool(np.ptp(profile.text_to_visual, axis=0).max(initial=0.0) > 0)
