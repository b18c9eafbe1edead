"""Any model that follows the conventions of transformers and has no family of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpcal.plans.families.base import Family


class Generic(Family):
    """Supports the models for which `tpcal.plans.families.find` finds no other family.

    Each unbroken run of visual tokens counts as one image. Selectors that use the token grid
    therefore get a square or a single row; a family for the model would give the real grid.
    """

    name = "generic"

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs with the position ids that `generate` gives a prompt padded on the left.

        The model computes the position ids of other prompts itself, perhaps in three parts
        (M-RoPE).
        """
        mask = inputs.get("attention_mask")
        if mask is None or bool(mask[:, 0].all()):
            return dict(inputs)
        return super().numbered(inputs)


FAMILY = Generic()
