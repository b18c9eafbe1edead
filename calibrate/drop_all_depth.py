"""Layers from which dropping every visual token is safe, for each group of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tpcal.plans.errors import excerpt

if TYPE_CHECKING:
    from tpcal.calibrate.profile import Profile

SAFE = 0.01
"""A loss below this, in nats per answer token, counts as none."""
NEEDED = 0.1
"""A group still needs the image if its loss is at least this, in nats per answer token."""
LATE = 0.6
"""Share of the depth beyond which reading text still needs the image and most questions do not.

Source:
    Depths by which the model has half of the image's benefit, measured on Qwen2.5-VL 7B and 3B and
    InternVL2-2B by milab-iitj-dev/btp-reproduction: 36 to 61 % for POPE, MMBench, ScienceQA and
    AI2D, 58 to 68 % for GQA, 75 to 89 % for TextVQA, DocVQA and ChartQA. The embedded model reads
    glyphs up to 62 % and looks for colours and shapes up to 50 %.
"""


def drop_all_curve(profile: Profile, group: str | None = None) -> dict[int, float]:
    """Loss of dropping every visual token before a layer, in nats, by probed layer, rising.

    Args:
        profile: The profile.
        group: One of its groups; None for all samples.
    """
    means = profile.mean("kl", group)
    found = {p.layer: float(v) for p, v in zip(profile.probes, means, strict=True) if not p.keep}
    return dict(sorted(found.items()))


def safe_depth(curve: Mapping[int, float], threshold: float = SAFE) -> int | None:
    """First layer from which every probed drop-all loses less than ``threshold``, or None.

    Example:
        >>> from tpcal.calibrate.drop_all_depth import safe_depth
        >>> safe_depth({4: 0.5, 6: 0.004, 8: 0.02, 10: 0.003, 12: 0.0})
        10
    """
    # The curve need not fall everywhere, so it is walked from the last layer towards the first
    # and ends at the first loss that is too large.
    safe = None
    for layer in sorted(curve, reverse=True):
        if curve[layer] >= threshold:
            break
        safe = layer
    return safe


def safe_depths(profile: Profile, threshold: float = SAFE) -> dict[str, int | None]:
    """`safe_depth` of every group."""
    return {g: safe_depth(drop_all_curve(profile, g), threshold) for g in profile.groups}


def late_layer(profile: Profile) -> int:
    """First layer beyond `LATE`."""
    return math.ceil(LATE * profile.model.n_layers)


def late_groups(profile: Profile) -> tuple[str, ...] | None:
    """Groups that still need the image from `late_layer` on: dropping it there costs `NEEDED`.

    Returns None if no drop-all was probed there.
    """
    first = late_layer(profile)
    curves = {g: drop_all_curve(profile, g) for g in profile.groups}
    late = {g: [v for at, v in curve.items() if at >= first] for g, curve in curves.items()}
    if not all(late.values()):
        return None
    return tuple(g for g, losses in late.items() if max(losses) >= NEEDED)


def blind_spots(profile: Profile) -> tuple[str, ...]:
    """Warnings about what the samples of a profile cannot show, one or two sentences each.

    Whether some group needs the image as deep as reading text does is measured, because the names
    of groups say little about it.
    """
    found, late = [], late_layer(profile)
    if late_groups(profile) == ():
        found.append(
            f"No group of the samples needs the image from layer {late} on. Reading text usually "
            "does: add such samples before you trust a plan that drops tokens late."
        )
    if len(profile.groups) == 1:
        found.append(
            f"All samples are of one group ({excerpt(profile.groups[0])}), so a plan that ruins "
            "one kind of question can look fine. Name the column of their kinds with "
            "--group-column."
        )
    return tuple(found)
