"""When things happen while a model generates: tokens as they arrive, the decoder's first pass."""

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
    """Seconds of the clock once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return clock()


class Stamps(BaseStreamer):
    """Notes when `generate` hands over each token, of all rows at once; sees the prompt first.

    The tokens are on the CPU by then, so the device is done with them.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._seen_prompt = False
        self.at: list[float] = []
        """[n] seconds, one entry for each new token."""

    def put(self, value: Any) -> None:
        """Notes the time; the first call brings the prompt."""
        if self._seen_prompt:
            self.at.append(self._clock())
        self._seen_prompt = True

    def end(self) -> None:
        """Nothing is left to do."""


@contextmanager
def first_pass(model: Any, clock: Clock) -> Iterator[list[float]]:
    """When the decoder's first pass began and ended, the work of an applied plan included.

    Apply the plan before: its hooks have to stand between these two. Later passes go unwatched.
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
