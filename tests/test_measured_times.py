"""The recorded times are of tests that exist, and decide with the marks what a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from measured_times import SLOW_S, Recorder, function_of, scope_of, slow_functions

TESTS = Path(__file__).parent


def test_every_recorded_function_exists() -> None:
    gone = [
        function
        for function in slow_functions()
        if f"def {function.rpartition('::')[2]}("
        not in (TESTS / function.partition("::")[0]).read_text()
    ]
    assert gone == [], "make test-times"


def test_a_mark_outweighs_a_measured_time(request: pytest.FixtureRequest) -> None:
    here = request.node
    slow = {function_of(here.nodeid): 9.0}
    assert [scope_of(here, known) for known in ({}, slow)] == ["fast", "usual"]
    for scope in ("usual", "nightly"):
        here.add_marker(scope)
        assert scope_of(here, {}) == scope


def test_slow_functions_are_recorded_by_the_mean_of_their_cases(tmp_path: Path) -> None:
    out = tmp_path / "times.txt"
    recorder = Recorder(str(out))
    times = {"a.py::one[x]": 1.0, "a.py::one[y]": 0.0, "a.py::two": SLOW_S / 2}
    for nodeid, seconds in times.items():
        recorder.pytest_runtest_logreport(_report(f"tests/{nodeid}", seconds))
    recorder.pytest_sessionfinish()
    assert out.read_text().splitlines()[1:] == ["0.5 a.py::one"]


def _report(nodeid: str, seconds: float) -> pytest.TestReport:
    return pytest.TestReport(nodeid, ("", 0, ""), {}, "passed", None, "call", duration=seconds)
