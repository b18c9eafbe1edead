"""What holds for every test; which tests a run takes, and in which order processes share them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from measured_times import SCOPES, Recorder, function_of, scope_of, slow_functions

if TYPE_CHECKING:
    import torch

UNKNOWN_S = 0.02
"""Seconds that a case is expected to take where nothing was measured."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--scope", choices=SCOPES, default="usual", help="which tests to run")
    parser.addoption("--record-times", metavar="FILE", help="write down which tests are slow")
    parser.addoption(
        "--gpu-device",
        default="cuda",
        metavar="DEVICE",
        help="where the tests marked gpu run; with cpu they try their own logic",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record-times")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = slow_functions()
    wanted = SCOPES[: SCOPES.index(config.getoption("--scope")) + 1]
    taken = [item for item in items if scope_of(item, slow) in wanted]
    config.hook.pytest_deselected(items=[*set(items) - set(taken)])
    if hasattr(config, "workerinput"):  # longest file first, so that no process ends long after
        seconds = _expected(taken, slow)
        taken.sort(key=lambda item: -seconds[item.path])
    items[:] = taken


def _expected(items: Iterable[pytest.Item], slow: Mapping[str, float]) -> dict[Path, float]:
    """Seconds that the tests of each file will take."""
    seconds: dict[Path, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += slow.get(function_of(item.nodeid), UNKNOWN_S)
    return seconds


@pytest.fixture(scope="session")
def _states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders that do not exist yet, as few tests write into theirs."""
    parent = tmp_path_factory.mktemp("states")
    return (parent / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_state(_states: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test remembers, in the user's own folder, what another has judged."""
    monkeypatch.setenv("XDG_STATE_HOME", str(next(_states)))


@pytest.fixture(scope="session", autouse=True)
def _few_repeats() -> Iterator[None]:
    """No test reads the milliseconds of a profile, whose repeats take longer than its probes."""
    # Imports torch, which the process that distributes the tests does not need.
    from tpcal.calibrate import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "N_REPEATS", 2)
        yield


@pytest.fixture(scope="session")
def gpu(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of the tests marked gpu, which multiplies float32 as float32, not as TF32."""
    import torch

    device = torch.device(request.config.getoption("--gpu-device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; --gpu-device cpu tries the logic of the test")
    before = torch.backends.cudnn.allow_tf32  # for products of matrices it is off anyway
    torch.backends.cudnn.allow_tf32 = False
    yield device
    torch.backends.cudnn.allow_tf32 = before
