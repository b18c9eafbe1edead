"""Switches that leave all requests, or single ones, unpruned while a plan stays applied.

A pass that a switch leaves unpruned is the unpruned model's, bit by bit. What a pass of a sequence
may attend to depends on its earlier passes, so a sequence does not change sides. If tokens were
dropped from its cache, it goes on with the plan. If a switch left its first image unpruned, its
cache is marked with the place of that image, and it goes on unpruned as long as it holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import Cache

from tpcal.plans.executor.cache import holds_dropped
from tpcal.plans.executor.compat import caches_in
from tpcal.plans.kill_switch import OFF, off_by_variable

_MARK = "_tpcal_first_unpruned"
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
        _BYPASSED.set((*_BYPASSED.get(), self))
        try:
            yield
        finally:
            # Not by a token: a generator may leave the context in another one than it entered it
            # in. Of several bypasses around each other one is left.
            others = list(_BYPASSED.get())
            if self in others:
                others.remove(self)
            _BYPASSED.set(tuple(others))

    def leaves_unpruned(self, cache: Cache | None) -> bool:
        """Whether a pass runs without the plan.

        Args:
            cache: What the pass continues; None or an empty cache if it begins a sequence.
        """
        if first_unpruned(cache) is not None:
            return True
        if not self.is_off and self not in _BYPASSED.get():
            return False
        return not holds_dropped(cache)


_BYPASSED: ContextVar[tuple[Switch, ...]] = ContextVar("tpcal_bypassed", default=())


def first_unpruned(cache: Cache | None) -> int | None:
    """Place of the first image in a sequence that goes on unpruned; None if the choice is open."""
    place: int | None = getattr(cache, _MARK, None)
    if cache is None or place is None:
        return None
    return place if cache.get_seq_length() > place else None  # else the image was cropped away


def mark_unpruned(output: Any, first: int | None) -> None:
    """Notes on the cache in a decoder's output where its first image was left unpruned.

    Args:
        output: What the decoder returned.
        first: Number of tokens before the image; None if the sequence can still be pruned.
    """
    for cache in caches_in(output):
        if getattr(cache, _MARK, None) != first:
            setattr(cache, _MARK, first)
