"""Switches that leave all requests, or single ones, unpruned while a plan stays applied.

A pass that a switch leaves unpruned is the unpruned model's, bit by bit. What a pass of a sequence
may attend to depends on its earlier passes, so a sequence does not change sides. If tokens were
dropped from its cache, it goes on with the plan. If it began unpruned by a switch, its cache is
marked, and it goes on unpruned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import Cache

from tpcal.plans.executor.cache import holds_dropped, is_empty
from tpcal.plans.executor.compat import caches_in
from tpcal.plans.kill_switch import OFF, off_by_variable

_MARK = "_tpcal_unpruned"
_LOG = logging.getLogger(__name__)


class Switch:
    """Decides for each pass of a model whether the plan is carried out.

    Args:
        name: The plan, as a warning names it.
    """

    def __init__(self, name: str) -> None:
        self._by_variable = off_by_variable()
        self._off = False
        if self._by_variable:
            _LOG.warning("%s is set, so %s is applied but prunes no request.", OFF, name)

    @property
    def is_off(self) -> bool:
        """Whether all sequences that begin now are left unpruned."""
        return self._by_variable or self._off

    def turn(self, off: bool) -> None:
        """Leaves sequences that begin from now on unpruned, or carries the plan out again."""
        self._off = off
        if self._by_variable and not off:
            _LOG.warning("%s is set, so the plan stays switched off.", OFF)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """A context, of this thread or task alone, in which sequences begin unpruned."""
        token = _BYPASSED.set((*_BYPASSED.get(), self))
        try:
            yield
        finally:
            _BYPASSED.reset(token)

    def leaves_unpruned(self, cache: Cache | None) -> bool:
        """Whether a pass runs without the plan.

        Args:
            cache: What the pass continues; None or an empty cache if it begins a sequence.
        """
        if getattr(cache, _MARK, False) and not is_empty(cache):
            return True
        if not self.is_off and self not in _BYPASSED.get():
            return False
        return not holds_dropped(cache)


_BYPASSED: ContextVar[tuple[Switch, ...]] = ContextVar("tpcal_bypassed", default=())


def mark_unpruned(output: Any, unpruned: bool) -> None:
    """Notes on the cache in a decoder's output whether its sequence is left unpruned."""
    for cache in caches_in(output):
        if getattr(cache, _MARK, False) != unpruned:
            setattr(cache, _MARK, unpruned)
