"""Processes that search one study together, and what has to hold for them on every storage."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from children import Child

SCRIPT = Path(__file__).parent / "planner" / "searching.py"
N_TRIALS = 12


def searching(storage: Path | str, pause_s: float = 0.05) -> Child:
    """A process that searches."""
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    return Child(code, storage, N_TRIALS, pause_s)


def result(child: Child) -> dict[str, Any]:
    """What a process found, once it ends."""
    output = child.lines.read()
    assert child.wait() == 0
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
            assert victim.lines.readline().startswith("measuring")
            victim.send(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
        found = result(other)
    assert found["trials"] == N_TRIALS
    states = [tuple(pair) for pair in found["all"]]
    lost = [seed for state, seed in states if state == "FAIL"]
    assert lost
    assert all(("COMPLETE", seed) in states for seed in lost)
