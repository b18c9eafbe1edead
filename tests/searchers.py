"""Processes that search one study together, and what has to hold for them on every storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "planner" / "searching.py"
N_TRIALS = 12


@contextmanager
def searching(storage: Path | str, pause_s: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """A process that searches; it is killed if it still runs at the end."""
    command = [sys.executable, str(SCRIPT), str(storage), str(N_TRIALS), str(pause_s)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process found, once it ends."""
    output, _ = child.communicate(timeout=200)
    assert child.returncode == 0
    return json.loads(output.splitlines()[-1])


def check_together(storage: Path | str) -> None:
    """Two processes on one storage do the trials of one, and find the same plan."""
    with searching(storage) as one, searching(storage) as other:
        first, second = result(one), result(other)
    assert first["plans"] + second["plans"] <= N_TRIALS  # repeats are not measured
    assert min(first["plans"], second["plans"]) > 0
    assert first["trials"] == second["trials"] == N_TRIALS
    assert first["cuts"] == second["cuts"]
    done = [seed for state, seed in max(first["all"], second["all"], key=len) if state != "FAIL"]
    seeds = [seed for seed in done if seed is not None]
    assert sorted(seeds) == list(range(len(seeds)))  # each once


def check_what_a_killed_one_leaves(storage: Path | str) -> None:
    """Of two processes on one storage one is killed; the other does all trials, also its."""
    with searching(storage) as other:
        with searching(storage, pause_s=60) as victim:  # for ever in its first plan
            assert victim.stdout is not None
            assert victim.stdout.readline().startswith("measuring")
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
        found = result(other)
    assert found["trials"] == N_TRIALS
    states = [tuple(pair) for pair in found["all"]]
    lost = [seed for state, seed in states if state == "FAIL"]
    assert lost
    assert all(("COMPLETE", seed) in states for seed in lost)
