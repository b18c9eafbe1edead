"""Where searches are kept: a journal file or a database that many processes share."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import Study
from optuna.trial import TrialState

from tpcal.plans.errors import UsageError


class _Journal(JournalFileBackend):
    """The journal without a sync to disk per line.

    A killed process loses nothing; a power cut can lose the last seconds. Optuna's own syncs for
    every reported sample, which takes longer than measuring a small model.
    """

    def __init__(self, path: str) -> None:
        self._path, self._own_lock = path, JournalFileSymlinkLock(path)
        super().__init__(path, self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()
        try:
            with open(self._path, "ab") as file:
                file.write(lines.encode())
        finally:
            self._own_lock.release()


def open_storage(storage: Path | str | None) -> BaseStorage:
    """Optuna storage: a journal file (created with its folder), a database URL, or memory.

    Raises:
        UsageError: The file cannot be used.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, str) and "://" in storage:
        return _database(storage)
    path = Path(storage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        return JournalStorage(_Journal(str(path)))
    except OSError as error:
        raise UsageError(
            f"storage must be a writable file; got {path}: {error.strerror}."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):  # Optuna asserts
        raise UsageError(
            f"storage must be an Optuna journal; got {path}, which is damaged. Delete it to start "
            "the search again."
        ) from None


def _database(url: str) -> BaseStorage:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return get_storage(url)
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"storage must be a database Optuna can open; got {url}: {reason}"
        ) from None


def _mend(path: Path) -> None:
    """Cuts off a last line that a killed process did not finish."""
    if not path.exists() or path.stat().st_size == 0:
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("rb+") as file:
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            file.truncate(len(whole))
    finally:
        lock.release()
    for line in whole.splitlines()[-1:]:  # Optuna notices a bad last line only after adding to it
        json.loads(line)


def owner() -> str:
    """Names this process among all that share a storage."""
    return f"{socket.gethostname()}:{os.getpid()}"


def release_abandoned(study: Study) -> int:
    """Marks the trials as failed that a dead process of this host, or this process, left open."""
    host = socket.gethostname()
    n_released = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name, _, pid = str(trial.user_attrs.get("owner", "")).rpartition(":")
        if name == host and (int(pid) == os.getpid() or not _alive(int(pid))):
            study.tell(trial.number, state=TrialState.FAIL)
            n_released += 1
    return n_released


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
