"""Measured repeats, their medians and spreads, and the ratios of paired repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpcal.plans.json_files import number

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)

    @classmethod
    def from_json(cls, data: Any) -> Spread:
        """The spread in a file; raises ValueError if the numbers cannot be one of times."""
        median, low, high = (number(data[key]) for key in ("median", "low", "high"))
        if not 0 < low <= median <= high:
            raise ValueError(f"{median:g} [{low:g}, {high:g}] is no spread of times")
        return cls(median, low, high)

    @property
    def value(self) -> float:
        """The median, which charts draw like the value of any interval."""
        return self.median

    @property
    def half(self) -> float:
        """Half of the distance between the quartiles."""
        return (self.high - self.low) / 2


def digits_of(value: float) -> int:
    """Number of decimals that shows three digits of a value, or none of a value from 100 on."""
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2


@dataclass(frozen=True)
class Repeat:
    """One call of `generate`."""

    ttft_ms: float
    """Time from the call to the first token: vision tower, prefill and the work of `generate`."""
    decoder_ms: float
    """Time of the decoder's prefill alone, from the embedded prompt to the last norm."""
    token_ms: float
    """Median time from one token to the next."""
    tokens_per_s: float
    """New tokens of the whole batch, divided by the time of the whole call."""


@dataclass(frozen=True)
class Measure:
    """One of the times or rates that a plan is judged by."""

    name: str
    of: str
    """Attribute of `Repeat`."""
    says: str
    """Name for people."""
    unit: str
    rises: bool = False
    """Whether more is better."""


MEASURES = (
    Measure("ttft", "ttft_ms", "first token", "ms"),
    Measure("token", "token_ms", "per token", "ms"),
    Measure("throughput", "tokens_per_s", "throughput", "tokens/s", rises=True),
)


@dataclass(frozen=True)
class GenerationRun:
    """The repeats of one plan, or of the unpruned model, in one cell."""

    name: str
    repeats: tuple[Repeat, ...]
    peak_bytes: int | None
    """Peak memory beyond the weights; None if it cannot be measured."""
    kv_bytes: int
    """Bytes of the cache after the last token, for all rows and including filler."""

    def values(self, of: str) -> list[float]:
        """[n] values of one attribute of `Repeat`."""
        return [getattr(repeat, of) for repeat in self.repeats]

    def spread(self, of: str) -> Spread:
        """Median and quartiles of one attribute of `Repeat`."""
        return Spread.of(self.values(of))

    def ratios(self, of: str, unpruned: GenerationRun) -> list[float]:
        """[n] values divided by those of the unpruned model in the same repeat."""
        pairs = zip(self.values(of), unpruned.values(of), strict=True)
        return [mine / theirs for mine, theirs in pairs]


@dataclass(frozen=True)
class CellSizes:
    """The sizes of the prompts of a cell."""

    batch_size: int
    n_visual: int
    """Number of visual tokens of a row."""
    n_text: int
    """Number of text tokens of the longest row, including those of the chat format."""
    n_text_least: int
    """Number of text tokens of the shortest row."""
    n_new: int
    """Number of tokens that every row had to generate."""

    @property
    def title(self) -> str:
        """The title of the cell, for example ``batch 4, 144 + 32–64 tokens``."""
        text = f"{self.n_text}"
        if self.n_text_least < self.n_text:
            text = f"{self.n_text_least}–{self.n_text}"
        return f"batch {self.batch_size}, {self.n_visual} + {text} tokens"


@dataclass(frozen=True)
class Cell(CellSizes):
    """The repeats of the unpruned model and of the plans on the same prompts."""

    unpruned: GenerationRun
    plans: tuple[GenerationRun, ...]
