"""The processes that `accelerate launch` or `torchrun` starts together share one calibration."""

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
"""A slow process is waited for; a dead one breaks its connection, which is noticed at once."""


@dataclass(frozen=True)
class Team:
    """This process among those that work together; a lone process is a team of one.

    Every process of a team has to make the same calls in the same order.
    """

    place: int = 0
    """0 is the main process, which reports and writes what all have made."""
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes."""
        return self.place == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items: every ``size``-th one."""
        return items[self.place :: self.size]

    def agree(self, find: Callable[[], T]) -> T:
        """What the main process finds; the others do not look.

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
        """Returns when every process has come here.

        Raises:
            RunFailed: A process of the team has ended.
        """
        if self.size > 1:
            from accelerate import PartialState

            with _explained():
                PartialState().wait_for_everyone()


def team() -> Team:
    """The team that this process was started in.

    The processes talk to each other through the CPU, so that they may also share a GPU.

    Raises:
        RunFailed: The others cannot be reached.
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
