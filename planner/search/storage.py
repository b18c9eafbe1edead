"""Where searches are kept: a journal file or a database that many processes share."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
from optuna.storages import (
    BaseStorage,
    GrpcStorageProxy,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from tpcal.plans.errors import UsageError
from tpcal.plans.redaction import redacted

_LONGEST_START_S = 10.0
_NO_FILE = re.compile(r"(?i)^[a-z][a-z0-9+.\-]+:|\bpassword\s*=")
"""URLs without their slashes, and libpq's own connection strings; ``C:`` is a drive."""
_BROKEN = (
    *(ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError),
    *(AssertionError, OptunaError),
)
"""What Optuna raises where a line of a journal is not what it wrote."""


class _Journal(JournalFileBackend):
    """The journal without a sync to disk per line.

    A killed process loses nothing; a power cut can lose the last seconds. Optuna's own syncs for
    every reported sample, which takes longer than measuring a small model.
    """

    def __init__(self, path: str) -> None:
        self._path, self._own_lock = path, lock_of(path)
        super().__init__(path, self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            self._append(lines.encode())
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}.") from None

    def _append(self, lines: bytes) -> None:
        self._own_lock.acquire()
        try:
            with open(self._path, "rb+") as file:
                file.seek(_end_of_lines(file))
                file.truncate()
                file.write(lines)
        finally:
            self._own_lock.release()


def lock_of(path: str | Path) -> JournalFileSymlinkLock:
    """Optuna's lock of a file that exists, which a process that was killed holds for 30 s.

    Optuna links to the file, and looks through the link to see how old it is. A relative path
    would lead elsewhere from there, and every later process would wait without end.
    """
    return JournalFileSymlinkLock(os.path.abspath(path))


def open_storage(storage: Path | str | BaseStorage | None) -> BaseStorage:
    """Optuna storage that several processes may use at once.

    Args:
        storage: A journal file, which is created with its folder; the URL of a database
            (``postgresql+psycopg://…``) or of Optuna's gRPC proxy (``grpc://host:port``); None for
            memory; one that is open already is returned.

    Raises:
        UsageError: The file, database or proxy cannot be used.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    if isinstance(storage, str) and storage.startswith("grpc://"):
        return _proxy(storage)
    if isinstance(storage, str) and "://" in storage:
        return _database(storage)
    if _NO_FILE.search(str(storage)):
        raise UsageError(
            "storage must be a file, or a URL with '://' as in postgresql+psycopg://host/name; "
            "got a connection in other words, whose password would become the name of a file."
        )
    return _journal(Path(storage))


def _journal(path: Path) -> BaseStorage:
    try:
        if path.exists() and not path.is_file():  # which could be read without end
            raise UsageError(
                f"storage must be a writable file; got {path}, a folder, pipe or device."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_last_line(path)
        return JournalStorage(_Journal(str(path)))
    except OSError as error:
        raise UsageError(
            f"storage must be a writable file; got {path}: {error.strerror}."
        ) from None
    except _BROKEN:
        raise UsageError(
            f"storage must be an Optuna journal; got {path}, which is damaged. Delete it to start "
            "the search again."
        ) from None


def _check_last_line(path: Path) -> None:
    """Optuna notices a bad last line only after adding to it."""
    if path.exists():
        with path.open("rb") as file:
            content = file.read(_end_of_lines(file))
        for line in content.splitlines()[-1:]:
            json.loads(line)


def _end_of_lines(file: IO[bytes]) -> int:
    """Bytes up to the end of the last whole line; a killed process may leave a part of one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    end = size if file.read(1) == b"\n" else 0
    file.seek(0)
    return end or file.read().rfind(b"\n") + 1


def _proxy(url: str) -> BaseStorage:
    place = urlsplit(url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            proxy = GrpcStorageProxy(host=place.hostname or "localhost", port=place.port or 13000)
            proxy.wait_server_ready(timeout=_LONGEST_START_S)
    except ImportError:
        raise UsageError(
            f"storage {redacted(url, url)} needs packages that are not installed. "
            "Way out: pip install grpcio protobuf."
        ) from None
    except (ValueError, ConnectionError):
        raise UsageError(
            f"storage must be a running gRPC proxy of Optuna (grpc://host:port); got "
            f"{redacted(url, url)}, where none answers. Start one, or check host and port."
        ) from None
    return proxy


def _database(url: str, n_tries: int = 3) -> BaseStorage:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        ping = {"pool_pre_ping": True}  # servers drop connections that are idle for long
        return get_storage(RDBStorage(url, engine_kwargs=ping))
    except ImportError:
        raise UsageError(
            f"storage {redacted(url, url)} needs a driver that is not installed. "
            'Way out: pip install "psycopg[binary]" for PostgreSQL; pymysql and mysql+pymysql://… '
            "for MySQL."
        ) from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError, ValueError) as error:
        if n_tries > 1 and not isinstance(error, ArgumentError):
            time.sleep(0.5)  # another process may be making the tables at this moment
            return _database(url, n_tries - 1)
        got = f"{url}: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise UsageError(
            f"storage must be a database Optuna can open; got {redacted(got, url)}"
        ) from None
