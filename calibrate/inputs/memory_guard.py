"""One clear error for running out of memory, instead of a traceback or a wrong diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tpcal.plans.errors import RunFailed

_SIGNS = ("out of memory", "can't allocate memory", "alloc_cpu", "not enough memory")


@contextmanager
def memory_guard(what: str, advice: str) -> Iterator[None]:
    """Turns the out-of-memory errors of Python, torch's CPU allocator and CUDA into `RunFailed`.

    Args:
        what: The work in progress, for example "Calibration".
        advice: One or more sentences that say how to go on.

    Raises:
        RunFailed: The block ran out of memory. All other errors pass through unchanged.

    Example:
        >>> from tpcal.calibrate.inputs.memory_guard import memory_guard
        >>> with memory_guard("Calibration", "Use a smaller --batch-size."):
        ...     numbers = [0] * 10
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and not any(sign in text for sign in _SIGNS):
            raise
        raise RunFailed(f"{what} ran out of memory. {advice}") from error
