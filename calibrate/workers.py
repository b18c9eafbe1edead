"""Sharing one calibration among processes that `accelerate launch` or `torchrun` starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from tpcal.plans.errors import RunFailed

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=7)
"""Longest wait for a slow process; a dead one closes its connection and is noticed at once."""


@dataclass(frozen=True)
class Team:
    """This process among those that work together; a single process is a team of one.

    Every process of a team must make the same calls in the same order.
    """

    place: int = 0
    """Number of this process; 0 is the main process, which reports and writes the profile."""
    size: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes."""
        return self.place == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items: every ``size``-th one, from ``place`` on."""
        return items[self.place :: self.size]

    def agree(self, find: Callable[[], T]) -> T:
        """The result of ``find`` in the main process; the other processes do not call it.

        Raises:
            RunFailed: A process of the team has ended.
        """
        if self.size == 1:
            return find()
        from accelerate.utils import broadcast_object_list

        held: list[Any] = [find() if self.is_main else None]
        with _explained():
            broadcast_object_list(held)
        agreed: T = held[0]
        return agreed

    def wait(self) -> None:
        """Returns after every process has called it.

        Raises:
            RunFailed: A process of the team has ended.
        """
        if self.size > 1:
            from accelerate import PartialState

            with _explained():
                PartialState().wait_for_everyone()


def team() -> Team:
    """The team that this process was started in.

    The processes communicate through the CPU, so that they may also share a GPU.

    Raises:
        RunFailed: The other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    from accelerate import PartialState

    with _explained():
        state = PartialState(cpu=True, timeout=_LONGEST_WAIT)
    return Team(state.process_index, state.num_processes)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises
        raise RunFailed(
            "All processes that share a calibration must run to its end; got one that cannot be "
            f"reached ({str(error).splitlines()[0]}). What is done is kept: run the same command "
            "again."
        ) from error
