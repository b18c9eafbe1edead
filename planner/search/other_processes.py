"""The other processes, perhaps on other hosts, that search the same study at the same time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from tpcal.planner.search.ledger import (
    owner_of,
    queued_for,
    signs_of_life,
    write_beat,
    write_owner,
)

BEAT_S = 20.0
"""Seconds between the signs of life of a process that measures."""
SILENCE_S = 120.0
"""Seconds without one after which a process of another host counts as dead."""
_PAUSE_S = 0.25


class OtherProcesses:
    """What one process knows about the other processes of a study.

    A process that has died leaves its trial in the state RUNNING. Optuna has a heartbeat for
    databases only, not for journals or gRPC proxies; this one works in every storage. It does not
    compare the clocks of two hosts: a trial is silent while this process sees no change of it.

    Args:
        study: The shared study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._heard: dict[int, tuple[Any, float]] = {}

    def at_work(self) -> list[FrozenTrial]:
        """The trials that others measure; to be called while this process measures none.

        A trial whose process is gone is marked as failed, so that its plan can be tried again.
        """
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        gone = [trial for trial in running if self._is_gone(trial)]
        for trial in gone:
            give_up(self._study, trial.number)
        return [trial for trial in running if trial not in gone]

    def wait(self) -> None:
        """Sleeps for a moment, in which other processes go on."""
        time.sleep(_PAUSE_S)

    def have(self, trial: Trial) -> bool:
        """Whether an older trial was queued for the same plan, by a process at the same moment."""
        trials = self._study.get_trials(deepcopy=False)
        queued = queued_for(trials[trial.number])
        older = (t for t in trials[: trial.number] if t.state != TrialState.FAIL)
        return queued is not None and any(queued_for(t) == queued for t in older)

    def n_before(self, trial: Trial) -> int:
        """How many older trials are running."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return sum(other.number < trial.number for other in running)

    def _is_gone(self, trial: FrozenTrial) -> bool:
        host, pid = owner_of(trial)
        if host == _host() and not _is_another(int(pid)):
            return True
        sign = signs_of_life(trial)
        now = time.monotonic()
        if self._heard.get(trial.number, (None, now))[0] != sign:
            self._heard[trial.number] = sign, now
        return now - self._heard[trial.number][1] > SILENCE_S


def owner() -> str:
    """Names this process among all that share a study."""
    return f"{_host()}:{os.getpid()}"


def _host() -> str:
    """Where this process's number means this process.

    Containers may share the name of a host, and machines that were cloned have one name; each
    container counts its processes by itself.
    """
    names = [socket.gethostname()]
    with suppress(OSError):  # not on Linux
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        names.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(names)


@contextmanager
def measuring(trial: Trial) -> Iterator[None]:
    """Marks the trial as this process's, and gives signs of life while the context lasts."""
    write_owner(trial, owner())
    ended = Event()
    thread = Thread(target=_beat, args=(trial, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _beat(trial: Trial, ended: Event) -> None:
    n_beats = 0
    while not ended.wait(BEAT_S):
        n_beats += 1
        with suppress(
            Exception
        ):  # a storage out of reach for a moment; the next one may get there
            write_beat(trial, n_beats)


def give_up(study: Study, number: int) -> None:
    """Marks a trial as failed, unless another process has been faster."""
    with suppress(UpdateFinishedTrialError):
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)


def _is_another(pid: int) -> bool:
    """Whether a process of this host lives and is not this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
