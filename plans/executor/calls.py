"""Calls of a model with a plan: what each thread runs, and when no pass runs any more.

What a call knows belongs to its context: to its thread and, in asyncio, to its task. Threads
therefore run passes of one model at the same time. What a prompt has dropped outlives its pass in
the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import update_wrapper
from threading import Condition
from typing import TYPE_CHECKING, Any

from torch import nn

from tpcal.plans.executor import compiled

if TYPE_CHECKING:
    from tpcal.plans.executor.passes import ForwardPass
    from tpcal.plans.executor.static_cache import DynamicCopy

Forward = Callable[..., Any]
Run = Callable[[Forward, tuple[Any, ...], Mapping[str, Any]], Any]


class Call:
    """A call of a model's base or decoder.

    Args:
        handle: The handle whose plan the call runs under.
        inputs: What the base model was called with; empty if the decoder was called without it.
        run: The pass of a call of the decoder.
        unpruned: Whether a switch leaves the call unpruned.
    """

    __slots__ = (
        *("copy", "first_unpruned", "handle", "has_cache", "inputs", "n_new", "outer"),
        *("rope_deltas", "run", "unpruned"),
    )

    def __init__(
        self,
        handle: object,
        inputs: Mapping[str, Any],
        run: ForwardPass | None = None,
        *,
        unpruned: bool = False,
    ) -> None:
        self.handle = handle
        self.inputs = inputs
        self.run = run
        self.unpruned = unpruned
        self.first_unpruned: int | None = None
        """Place of the first image of its sequences that was left unpruned; None if none was."""
        self.has_cache = False
        """Whether the decoder was given a cache."""
        self.copy: DynamicCopy | None = None
        """The copy that stands in for a static cache."""
        self.rope_deltas: tuple[Any] | None = None
        """The position offset that a base computed, as the one entry; None if it did not."""
        self.n_new = 0
        """Number of sequences that a pass begins; 0 if it continues some."""
        self.outer = INNERMOST.get()
        """The call in which this one was made."""

    def arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keyword arguments for the decoder, from those that it was called with."""
        return given if self.copy is None else self.copy.arguments(given)


# One variable for all handles: a context keeps every variable that was ever set in it.
INNERMOST: ContextVar[Call | None] = ContextVar("tpcal_call", default=None)
"""The call that runs in this context; None between calls."""


def running(handle: object, *, in_pass: bool = False) -> Call | None:
    """The innermost call under a handle in this context; None between calls.

    Args:
        handle: The handle.
        in_pass: Only a call that runs a pass of the decoder.
    """
    call = INNERMOST.get()
    while call is not None and (call.handle is not handle or (in_pass and call.run is None)):
        call = call.outer
    return call


class Passes:
    """The passes that run under a handle, in all threads.

    Args:
        end: Called once, when no pass runs any more after `close`.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._running: set[object] = set()
        self._closed = False
        self._changed = Condition()

    # A pass enters before it looks whether it is too late, and `close` says so before it looks for
    # passes: one of both sees the other, without a lock that every call would take. `leave` may
    # follow an `enter` that an interrupt broke off.

    def enter(self, mark: object) -> bool:
        """Counts a pass; False, and not counted, after `close`."""
        self._running.add(mark)
        if self._closed:
            self.leave(mark)
        return not self._closed

    def leave(self, mark: object) -> None:
        """Ends a pass; the last one after `close` calls ``end``."""
        self._running.discard(mark)
        if self._closed:
            self._end_if_idle()

    def close(self, *, wait: bool) -> None:
        """Lets no further pass enter, and calls ``end`` after those that run.

        Args:
            wait: Whether to return only then.
        """
        self._closed = True
        with self._changed:
            while wait and self._running:
                self._changed.wait(1)  # an interrupt may have kept a pass from telling its end
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        with self._changed:
            if not self._running:
                self._end()
            self._changed.notify_all()


def exchange(module: nn.Module, run: Run, undo: ExitStack) -> None:
    """Makes calls of a module go through ``run``.

    `forward` itself is exchanged, because a pair of hooks could not promise that the second one
    runs: torch does not call a hook that is "always called" after Ctrl-C interrupts the forward
    pass.

    Args:
        module: The module whose `forward` is exchanged.
        run: Gets the module's own `forward` and what the module was called with.
        undo: Restores `forward` when closed, unless another tool wrapped it meanwhile.
    """
    before, forward = vars(module).get("forward"), module.forward

    @compiled.around
    def planned(*args: Any, **kwargs: Any) -> Any:
        return run(forward, args, kwargs)

    def restore() -> None:
        if vars(module).get("forward") is not planned:
            return
        if before is None:
            del module.forward
        else:
            module.forward = before

    update_wrapper(planned, forward, updated=())
    module.forward = planned
    undo.callback(restore)
