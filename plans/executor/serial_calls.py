"""Calls of a model's modules that take place one after another, whatever threads make them."""

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
    """Lets calls of a module go through ``run``, each while it holds the lock.

    The lock is held around `forward` itself, because hooks cannot promise to release one: a hook
    that is "always called" is not where Ctrl-C interrupts the forward.

    Args:
        module: Its `forward` is exchanged.
        lock: Re-entrant.
        run: Gets the module's own `forward` and what the module was called with.
        undo: Takes it back when closed; close it while the lock is held. Calls that wait then go
            on as the module is afterwards.
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
