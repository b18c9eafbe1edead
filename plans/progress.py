"""The type of the functions that receive the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Receives the work done, the work in all (0 if unknown), and what is being done."""


def silent(done: int, total: int, what: str) -> None:
    """A `Progress` that ignores what it receives."""
