"""What was measured: repeats, their medians and spread, and ratios of repeats side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Spread:
    """Median and middle half (quartiles) of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)

    @property
    def half(self) -> float:
        """Half of the range that the middle half of the repeats spans."""
        return (self.high - self.low) / 2


def digits_of(value: float) -> int:
    """Decimals that show three digits of a number, and all of one above 100."""
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2


@dataclass(frozen=True)
class Repeat:
    """One call of `generate`."""

    ttft_ms: float
    """From the call to the first token: the vision tower, the prefill and what `generate` does."""
    decoder_ms: float
    """Of it the decoder's prefill, from the embedded prompt to the last norm."""
    token_ms: float
    """Median from one token to the next."""
    tokens_per_s: float
    """New tokens of the whole batch, divided by the time of the whole call."""


@dataclass(frozen=True)
class Measure:
    """One of the times that a plan is judged by."""

    name: str
    of: str
    """Attribute of `Repeat`."""
    says: str
    unit: str
    rises: bool = False
    """More is better."""


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
    """Most held at a time beyond the weights; None where it cannot be measured."""
    kv_bytes: int
    """Of the cache when the last token was made; all rows, filler included."""

    def values(self, of: str) -> list[float]:
        """One attribute of every repeat."""
        return [getattr(repeat, of) for repeat in self.repeats]

    def spread(self, of: str) -> Spread:
        """Its median and quartiles."""
        return Spread.of(self.values(of))

    def ratios(self, of: str, unpruned: GenerationRun) -> list[float]:
        """[n] values by those of the unpruned model in the same repeat."""
        pairs = zip(self.values(of), unpruned.values(of), strict=True)
        return [mine / theirs for mine, theirs in pairs]


@dataclass(frozen=True)
class Cell:
    """The unpruned model and the plans on the same prompts."""

    batch_size: int
    n_visual: int
    """Visual tokens of a row."""
    n_text: int
    """Text tokens of the longest row, those of the chat format among them."""
    n_text_least: int
    """Of the shortest."""
    n_new: int
    """Tokens that every row was made to generate."""
    unpruned: GenerationRun
    plans: tuple[GenerationRun, ...]

    @property
    def title(self) -> str:
        """`batch 4, 144 + 32–64 tokens`."""
        text = f"{self.n_text}"
        if self.n_text_least < self.n_text:
            text = f"{self.n_text_least}–{self.n_text}"
        return f"batch {self.batch_size}, {self.n_visual} + {text} tokens"


def plain(cell: Cell, slower: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A cell as plain data.

    Args:
        cell: The cell.
        slower: For each plan the names of the measures in which it is slower.
    """
    sizes = ("batch_size", "n_visual", "n_text", "n_text_least", "n_new")
    runs = [_plain_run(cell.unpruned)]
    for run, names in zip(cell.plans, slower, strict=True):
        runs.append({**_plain_run(run), **dict(_ratios(run, cell)), "slower": list(names)})
    return {**{name: getattr(cell, name) for name in sizes}, "runs": runs}


def _plain_run(run: GenerationRun) -> dict[str, Any]:
    times = ("ttft_ms", "decoder_ms", "token_ms", "tokens_per_s")
    return {
        "name": run.name,
        **{of: asdict(run.spread(of)) for of in times},
        "peak_bytes": run.peak_bytes,
        "kv_bytes": run.kv_bytes,
    }


def _ratios(run: GenerationRun, cell: Cell) -> Iterator[tuple[str, Any]]:
    found = {m.name: asdict(Spread.of(run.ratios(m.of, cell.unpruned))) for m in MEASURES}
    yield "ratios", found
