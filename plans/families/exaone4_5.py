"""EXAONE 4.5: grids of any size as in Qwen2.5-VL, plain positions, windows in most layers."""

from __future__ import annotations

from tpcal.plans.families.base import Family
from tpcal.plans.views import AnySize


class Exaone45(AnySize):
    """LG AI Research. The windows count logical positions, as the model made them."""

    name = "exaone4_5"
    architectures = ("Exaone4_5_ForConditionalGeneration",)
    numbered = Family.numbered


FAMILY = Exaone45()
