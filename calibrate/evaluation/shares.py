"""Mean scores, shares of costs, and tests of differences, as records that know their JSON."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tpcal.plans.json_files import number

ACCURACY, AGREEMENT = "accuracy", "agreement"
_ROUNDING = 1e-9
"""By this much, the numbers of an interval may be out of order."""


@dataclass(frozen=True)
class Share:
    """A mean score or share of samples, or a difference of two, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def from_json(cls, data: Any, least: float = 0.0) -> Share:
        """The share in a file.

        Args:
            data: Plain data.
            least: Smallest possible value, which is -1 for a difference.

        Raises:
            ValueError: The numbers are no share with its interval.
        """
        value, low, high = (number(data[key]) for key in ("value", "low", "high"))
        bounds = (least, low, value, high, 1.0)
        if any(one > other + _ROUNDING for one, other in pairwise(bounds)):
            raise ValueError(f"{value:g} [{low:g}, {high:g}] is no share with its interval")
        return cls(value, low, high)


@dataclass(frozen=True)
class MeasuredCost:
    """A cost relative to the unpruned model's, over the same samples."""

    layer_average_keep: float = 1.0
    """Mean over samples of visual tokens in a layer / visual tokens of the prompt."""
    prefill_flops: float = 1.0
    """As a share of the unpruned model's; includes choosing the tokens."""
    kv_bytes: float = 1.0
    """As a share of the unpruned model's."""

    @classmethod
    def from_json(cls, data: Any) -> MeasuredCost:
        """The cost in a file."""
        keys = ("layer_average_keep", "prefill_flops", "kv_bytes")
        return cls(*(number(data[key]) for key in keys))


@dataclass(frozen=True)
class Test:
    """The difference of two variants, and how likely chance alone makes such a difference."""

    one: str
    other: str
    measure: str
    difference: Share
    """Mean score of ``one`` minus mean score of ``other``."""
    p: float
    """Two-sided p-value of the hypothesis that there is no difference."""
    p_adjusted: float
    """The p-value after Holm's correction, which bounds the chance of any false finding."""
    n_changed: int
    """Number of samples on which the two score differently; the test rests on these."""
    is_graded: bool = False
    """Whether a score is between 0 and 1, so that the sign-flip test took McNemar's place."""

    __test__ = False  # pytest would otherwise collect it as a class of tests

    @classmethod
    def from_json(cls, data: Any) -> Test:
        """The test in a file."""
        return cls(
            one=str(data["one"]),
            other=str(data["other"]),
            measure=str(data["measure"]),
            difference=Share.from_json(data["difference"], least=-1.0),
            p=number(data["p"]),
            p_adjusted=number(data["p_adjusted"]),
            n_changed=int(number(data["n_changed"])),
            is_graded=bool(data.get("is_graded", False)),
        )
