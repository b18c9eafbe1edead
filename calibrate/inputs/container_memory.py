"""The memory that a container or a batch system leaves to this process.

psutil, and so Accelerate, counts the free memory of the whole machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of groups of processes (control groups, version 2)."""
OWN = Path("/proc/self/cgroup")
"""The file that names the group of this process."""


def room_of_container() -> int:
    """Bytes that this process's control groups may still take; `sys.maxsize` without a limit.

    A process that takes more is killed without a message. Files that the system only caches count
    as free.
    """
    # Inside a container, the root is the container's own group; a batch system's limit is that of
    # the group of this process, or of one above it.
    try:
        name = next(line for line in OWN.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return sys.maxsize
    own = ROOT / name.removeprefix("0::").strip("/")
    return min(_room(group) for group in (own, *own.parents) if group.is_relative_to(ROOT))


def _room(group: Path) -> int:
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return sys.maxsize
        taken = int((group / "memory.current").read_text())
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - taken + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):  # another system, or a group without this controller
        return sys.maxsize
