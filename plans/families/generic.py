"""Any model that keeps to transformers' conventions and has no family of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpcal.plans.families.base import Family


class Generic(Family):
    """Serves what `tpcal.plans.families.find` finds nothing else for.

    Each unbroken run of visual tokens counts as one image, so selectors that look at places see a
    square or a line; a family of its own knows the real grid.
    """

    name = "generic"

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a prompt padded on the left.

        Others the model numbers itself, perhaps in three parts (M-RoPE).
        """
        mask = inputs.get("attention_mask")
        if mask is None or bool(mask[:, 0].all()):
            return dict(inputs)
        return super().numbered(inputs)


FAMILY = Generic()
