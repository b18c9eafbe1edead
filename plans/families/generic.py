"""Any model that keeps to transformers' conventions and has no family of its own."""

from __future__ import annotations

from tpcal.plans.families.base import Family


class Generic(Family):
    """Serves what `tpcal.plans.families.find` finds nothing else for.

    Each unbroken run of visual tokens counts as one image, so selectors that look at places see a
    square or a line; a family of its own knows the real grid.
    """

    name = "generic"


FAMILY = Generic()
