"""Tiny cases on the device of the tests marked gpu, and what the host waits for there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import torch
from releases import skip_elsewhere
from torch import Tensor

from tpcal.plans.laws import Case


def case(name: str, attn: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Case:
    """The tiny model of an architecture with its prompts, made anew, on a device."""
    try:
        made: Case = import_module(f"tiny.{name}").build(attn)
    except ImportError as error:  # an architecture that came with a later release
        skip_elsewhere(str(error))
        raise
    made.model.to(device, dtype)  # in place: the case's positions are numbered by this model
    rows = tuple(moved(row, device, dtype) for row in made.rows)
    videos = tuple(moved(row, device, dtype) for row in made.videos)
    return replace(made, rows=rows, videos=videos)


def moved(
    inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The inputs on a device, what is no integer in another precision."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """The lines of code at which the host waited for the device; known when the context ends.

    On a CPU there is nothing to wait for.
    """
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA" in str(w.message)]
