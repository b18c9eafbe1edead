"""EXAONE 4.5 and HyperCLOVA X Vision: grids as in Qwen2.5-VL, one position per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.families.base import Family
from tpcal.plans.images.views import AnySize


class Exaone45(AnySize):
    """Supports EXAONE 4.5 and HyperCLOVA X Vision.

    The sliding windows of EXAONE count the positions of the unpruned prompt.

    Source:
        LG AI Research; NAVER.
    """

    name = "exaone4_5"
    architectures = (
        "Exaone4_5_ForConditionalGeneration",
        "HyperCLOVAXVisionV2ForConditionalGeneration",
    )
    since: ClassVar[Mapping[str, str]] = {"HyperCLOVAXVisionV2ForConditionalGeneration": "5.20"}
    numbered = Family.numbered

    def logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """[..., V] logits of states [..., D] after the final norm; HyperCLOVA X scales them."""
        text = model.config.get_text_config(decoder=True)
        return super().logits(model, states) * getattr(text, "logits_scaling", 1.0)


FAMILY = Exaone45()
