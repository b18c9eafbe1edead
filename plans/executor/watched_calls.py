"""Calls that are watched: what a plan did in each, and whether `on_report` is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tpcal.plans.executor.calls import Call
from tpcal.plans.executor.report import Report


@dataclass(eq=False)
class WatchedCall:
    """What a plan did in the first pass of a call of its model; nothing if no pass ran with it.

    Later passes do not count. They are decode steps, or sequences that `generate` runs beside the
    prompt, for guidance for instance.
    """

    handle: object
    """What carries the plan out."""
    is_shadow: bool
    """Whether the call only answers a request again, so that `on_report` is not told of it."""
    has_run: bool = False
    is_pruned: bool = False
    """Whether no switch left the pass unpruned."""
    begins: bool = False
    """Whether the pass began its sequences; otherwise it continued a cache."""
    report: Report | None = None
    """Its report; None if it neither began a sequence nor saw an image."""


_WATCHED: ContextVar[tuple[WatchedCall, ...]] = ContextVar("tpcal_watched", default=())


@contextmanager
def watching(handle: object, *, is_shadow: bool) -> Iterator[WatchedCall]:
    """A context around one call of the model, in this thread or task."""
    call = WatchedCall(handle, is_shadow)
    _WATCHED.set((*_WATCHED.get(), call))
    try:
        yield call
    finally:
        # Not by a token: a generator may leave the context in another one than it entered it in.
        _WATCHED.set(tuple(other for other in _WATCHED.get() if other is not call))


def note(call: Call, report: Report | None) -> None:
    """Notes a pass of the decoder for those who watch the call that it belongs to."""
    for watched in _WATCHED.get():
        if watched.handle is call.handle and not watched.has_run:
            watched.has_run, watched.is_pruned = True, not call.unpruned
            watched.begins, watched.report = call.n_new > 0, report


def in_shadow(handle: object) -> bool:
    """Whether a pass under this handle only answers a request again."""
    return any(call.handle is handle and call.is_shadow for call in _WATCHED.get())
