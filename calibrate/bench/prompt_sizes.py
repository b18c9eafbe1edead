"""Sizes of the prompts to time."""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST = 0.5
"""Text tokens of a batch's shortest row, as a share of those of its longest row."""


@dataclass(frozen=True)
class PromptSize:
    """Size of the prompts of one batch."""

    batch_size: int = 1
    n_images: int = 1
    """Number of images of each row."""
    n_text: int = 64
    """Text tokens of the longest row."""

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """[B] text tokens of each row, falling evenly from ``n_text`` to half of it.

        Requests that a server puts into one batch differ in length, so their rows are padded and
        need a mask.

        Example:
            >>> from tpcal.calibrate.bench.prompt_sizes import PromptSize
            >>> PromptSize(batch_size=3, n_text=64).text_lengths
            (64, 48, 32)
        """
        last = max(self.batch_size - 1, 1)
        steps = range(self.batch_size)
        return tuple(round(self.n_text * (1 - (1 - SHORTEST) * i / last)) for i in steps)
