"""Times of events while a model generates: each token, and the decoder's first pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from tpcal.calibrate.inputs.models import device_of
from tpcal.plans.families import find

Clock = Callable[[], float]


def now(device: torch.device, clock: Clock = time.perf_counter) -> float:
    """The clock's time in seconds, after the device has finished all work it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return clock()


class Stamps(BaseStreamer):
    """Records the time at which `generate` delivers each token, for all rows at once.

    The tokens are on the CPU by then, so the device has finished with them.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._seen_prompt = False
        self.at: list[float] = []
        """[n] times in seconds, one for each new token."""

    def put(self, value: Any) -> None:
        """Records the time; the first call delivers the prompt and is skipped."""
        if self._seen_prompt:
            self.at.append(self._clock())
        self._seen_prompt = True

    def end(self) -> None:
        """Does nothing."""


@contextmanager
def first_pass(model: Any, clock: Clock) -> Iterator[list[float]]:
    """The times at which the decoder's first pass began and ended, including a plan's work.

    The plan must be applied before, so that its hooks run between the two times. Later passes are
    not timed.
    """
    decoder, device = find(model).decoder(model), device_of(model)
    marks: list[float] = []

    def ended(*_: Any) -> None:
        marks.append(now(device, clock))
        after.remove()

    def began(*_: Any) -> None:
        marks.append(now(device, clock))
        before.remove()

    before = decoder.register_forward_pre_hook(began, prepend=True)
    after = decoder.register_forward_hook(ended)
    try:
        yield marks
    finally:
        before.remove()
        after.remove()
