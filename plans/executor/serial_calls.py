"""Calls of a module that wait for each other when several threads make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import update_wrapper
from typing import Any

from torch import nn

from tpcal.plans.executor import compiled

Forward = Callable[..., Any]
Run = Callable[[Forward, tuple[Any, ...], Mapping[str, Any]], Any]


def in_turn(
    module: nn.Module, lock: AbstractContextManager[Any], run: Run, undo: ExitStack
) -> None:
    """Makes calls of a module go through ``run``, each while it holds the lock.

    The lock is held around `forward` itself, because a pair of hooks could not promise to release
    it: torch does not call a hook that is "always called" after Ctrl-C interrupts the forward
    pass.

    Args:
        module: The module whose `forward` is exchanged.
        lock: A re-entrant lock.
        run: Gets the module's own `forward` and what the module was called with.
        undo: Restores `forward` when closed; close it while the lock is held. Calls that wait for
            the lock then run the restored `forward`.
    """
    before, forward = vars(module).get("forward"), module.forward
    afterwards: list[Forward] = []

    @compiled.around
    def turn(*args: Any, **kwargs: Any) -> Any:
        with lock:
            if not afterwards:
                return run(forward, args, kwargs)
        return afterwards[0](*args, **kwargs)

    def end() -> None:
        if vars(module).get("forward") is not turn:  # another tool wrapped it, and goes on
            afterwards.append(forward)
            return
        afterwards.append(lambda *args, **kwargs: module.forward(*args, **kwargs))
        if before is None:
            del module.forward
        else:
            module.forward = before

    update_wrapper(turn, forward, updated=())
    module.forward = turn
    undo.callback(end)
