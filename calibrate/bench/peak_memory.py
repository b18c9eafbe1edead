"""Peak memory of a piece of work."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int | None:
    """Peak bytes that the work holds on the device, beyond those held before it.

    On CUDA they come from its own statistics, on a CPU from the allocations that torch's profiler
    records. Returns None on other devices. The work is done once in any case.
    """
    gc.collect()
    if device.type == "cuda":
        return _cuda_peak(device, work)
    if device.type == "cpu":
        return _cpu_peak(work)
    work()
    return None


def _cuda_peak(device: torch.device, work: Callable[[], Any]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(work: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    moves = sorted(
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    )
    # Allocations count positive and releases negative; the peak is the largest running sum.
    held = most = 0
    for _, _, n_bytes in moves:
        held += n_bytes
        most = max(most, held)
    return most
