"""Tests that may be looked at after every observation, at any time, without more false alarms."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

EVERY = 8
"""Observations between two starts."""
KEPT = 24
"""Latest starts that are followed, beside the first."""


class SequentialTest:
    """Collects evidence against a claim about a stream of outcomes.

    A claim that became false late would have to outweigh all that spoke for it before. So evidence
    is collected from several starts at once, of which the j-th has the weight 6 / (pi j)^2.

    Args:
        log_evidence: The logarithm of the evidence that counts of outcomes give. While the claim
            is true, the evidence must start at 1 and must not grow in expectation, whatever was
            observed before.
        n_outcomes: Number of different outcomes.
        level: Largest chance of ever rejecting the claim if it is true, in (0, 1).

    Source:
        Ville 1939: a non-negative supermartingale that starts at 1 ever reaches 1 / level with a
        chance of at most level. Shin, Ramdas and Rinaldo 2024, arXiv 2203.03532, collect evidence
        from many starts; their sum limits the time between false alarms, while the weights here
        limit the chance of any.
    """

    def __init__(
        self, log_evidence: Callable[[Sequence[int]], float], n_outcomes: int, level: float
    ) -> None:
        self._log_evidence = log_evidence
        self._level = level
        self._counts = [0] * n_outcomes
        self._first = (1, tuple(self._counts))
        self._starts: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=KEPT)
        self._n_starts = 1
        self.is_rejected = False
        """Whether the evidence has ever reached 1 / level."""

    def add(self, outcome: int) -> bool:
        """Takes note of an outcome; returns whether it rejects the claim for the first time."""
        self._counts[outcome] += 1
        rejects = self._evidence() >= -math.log(self._level)
        if sum(self._counts) % EVERY == 0:
            self._n_starts += 1
            self._starts.append((self._n_starts, tuple(self._counts)))
        first_time = rejects and not self.is_rejected
        self.is_rejected |= rejects
        return first_time

    def _evidence(self) -> float:
        # All weights sum to 1, and a start that lies ahead or was forgotten only leaves something
        # out. So the sum is at most a supermartingale that starts at 1.
        logs = [self._of(*start) for start in (self._first, *self._starts)]
        largest = max(logs)
        return largest + math.log(sum(math.exp(log - largest) for log in logs))

    def _of(self, number: int, before: tuple[int, ...]) -> float:
        since = [now - then for now, then in zip(self._counts, before, strict=True)]
        return self._log_evidence(since) + math.log(6) - 2 * math.log(math.pi * number)
