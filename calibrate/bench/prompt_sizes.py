"""Sizes of the prompts to time."""

from __future__ import annotations

from dataclasses import dataclass

SHORTEST = 0.5
"""Text of a batch's shortest row, as a share of the longest's."""


@dataclass(frozen=True)
class PromptSize:
    """Prompts of one batch."""

    batch_size: int = 1
    n_images: int = 1
    """Of each row."""
    n_text: int = 64
    """Text tokens of the longest row."""

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """[B] text tokens of each row, evenly from all down to half of ``n_text``.

        Requests that a server puts into one batch are not equally long, so rows are padded, and
        masks needed that a single prompt does without.
        """
        last = max(self.batch_size - 1, 1)
        steps = range(self.batch_size)
        return tuple(round(self.n_text * (1 - (1 - SHORTEST) * i / last)) for i in steps)
