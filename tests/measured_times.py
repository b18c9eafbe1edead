"""Which test functions are slow: measured by `make test-times`, kept in measured_times.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pytest

FILE = Path(__file__).with_suffix(".txt")
SCOPES = ("fast", "usual", "nightly")
"""Of `--scope`, each a part of the next; CONTRIBUTING.md says what they hold."""
SLOW_S = 0.1
"""Seconds that a case of a slow test function takes on average, with what it sets up."""


def function_of(nodeid: str) -> str:
    """The test function of a case: its node id without parameters, from the folder tests on."""
    return nodeid.partition("[")[0].removeprefix("tests/")


def slow_functions() -> dict[str, float]:
    """Seconds of every test function that was measured to be slow; a new one counts as fast."""
    rows = [line.split() for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return {function: float(seconds) for seconds, function in rows}


def scope_of(item: pytest.Item, slow: Mapping[str, float]) -> str:
    """The narrowest scope that runs a test: by its mark, otherwise by its measured time."""
    marked = [scope for scope in SCOPES if item.get_closest_marker(scope)]
    return marked[-1] if marked else "usual" if function_of(item.nodeid) in slow else "fast"


class Recorder:
    """A plugin of pytest that writes the slow test functions to a file at the end of the run."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        cases = defaultdict(list)
        for nodeid, seconds in self._seconds.items():
            cases[function_of(nodeid)].append(seconds)
        self._path.write_text(table({name: fmean(times) for name, times in cases.items()}))


def table(seconds: dict[str, float]) -> str:
    """The lines of the file, for mean seconds of test functions."""
    head = f"# Seconds a case of the test functions that take {SLOW_S} s or more (make test-times)"
    slow = sorted((name, mean) for name, mean in seconds.items() if mean >= SLOW_S)
    return "\n".join([head, *(f"{mean:.1f} {name}" for name, mean in slow), ""])
