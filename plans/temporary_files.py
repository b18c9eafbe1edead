"""Temporary files and folders: one pattern of names, a lock while in use, removal of orphans.

The process that makes a temporary file or folder holds a lock on it until it ends, in whatever
way. A file with such a name that can be locked therefore belongs to a process that was killed, and
the next process that writes to the same folder removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows nothing is locked and no orphan is removed
    fcntl = None  # type: ignore[assignment]

PREFIX = ".tpcal-"
"""Prefix of the names of all temporary files and folders."""
LOCK = "lock"
"""Name of the locked file inside a temporary folder."""


def new_file(folder: Path) -> tuple[int, Path]:
    """Handle and path of a new locked temporary file; closing the handle releases the lock."""
    _remove_orphans(folder)
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=PREFIX)
        _lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another process removed it as an orphan before it was locked


def new_folder(folder: Path) -> Path:
    """A new temporary folder, locked until this process ends; the caller must remove it."""
    _remove_orphans(folder)
    while True:
        made = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):  # removed as an orphan before it was locked
            handle = os.open(made / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(handle)
            if os.fstat(handle).st_nlink:
                return made
            os.close(handle)


def _remove_orphans(folder: Path) -> None:
    for path in list(_own(folder)):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir():
                with _locked(path):
                    path.unlink()
            elif any(path.iterdir()):
                with _locked(path / LOCK):
                    shutil.rmtree(path, ignore_errors=True)
            else:
                path.rmdir()


def _own(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (Path(entry.path) for entry in entries if entry.name.startswith(PREFIX))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file; raises OSError if another process holds it or locks fail."""
    if fcntl is None:
        raise OSError("files cannot be locked")
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
