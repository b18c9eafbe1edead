from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from calibrations import calibrate
from children import Child

from tpcal.calibrate import profile
from tpcal.calibrate.checkpoints import Parts
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.workers import Team, team
from tpcal.plans.errors import RunFailed

Launch = Callable[[str, Sequence[object], Path], tuple[bool, list[str]]]
SCRIPT = """
import os, sys
from tpcal.calibrate import calibrate, timing
from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.probing_settings import ProbingSettings
timing.N_REPEATS = 2
loaded = models.load(sys.argv[1], device="cpu")
def progress(done, total, what):
    print(f"{done} {total} {what}\\n", end="", flush=True)  # one write, as processes share a pipe
settings = ProbingSettings(selectors=["attention", "grid"], keeps=[0.5, 0], batch_size=2)
calibrate.calibrate(loaded, load_samples(n=6), sys.argv[2], settings=settings,
                progress=progress)
print(f"done {os.environ['RANK']}\\n", end="", flush=True)
"""


def by_torchrun(code: str, arguments: Sequence[object], folder: Path) -> tuple[bool, list[str]]:
    """Whether two processes that torchrun starts, as `accelerate launch` does, end well; their lines."""
    script = folder / "script.py"
    script.write_text(code)
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [*program, *place, str(script), *map(str, arguments)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    ) as child:
        try:
            output, _ = child.communicate(timeout=250)
        except BaseException:
            child.send_signal(signal.SIGTERM)
            raise
    return child.returncode == 0, output.splitlines()


def by_hand(code: str, arguments: Sequence[object], folder: Path) -> tuple[bool, list[str]]:
    """The same of two processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    alike = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with ExitStack() as stack:
        team = [
            stack.enter_context(
                Child(code, *arguments, environ={**alike, "RANK": at, "LOCAL_RANK": at})
            )
            for at in "01"
        ]
        lines = [line for child in team for line in child.lines.read().splitlines()]
        return not any(child.wait() for child in team), lines


@pytest.mark.parametrize(
    "launched", [by_hand, pytest.param(by_torchrun, marks=pytest.mark.nightly)]
)
@pytest.mark.timeout(900)  # processes that load everything
def test_two_processes_make_the_profile_of_one_also_after_one_has_died(
    launched: Launch, model_folder: Path, loaded: Loaded, scenes: Samples, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    wish = {"selectors": ["attention", "grid"], "keeps": [0.5, 0], "batch_size": 2}
    calibrate(loaded, scenes, alone, **wish)
    out = tmp_path / "shared"
    start = 'if done == 4 and os.environ["RANK"] == "0":\n        os.kill(os.getpid(), 9)\n    '
    dying = SCRIPT.replace('print(f"{done}', start + 'print(f"{done}')
    well, lines = launched(dying, [model_folder, out], tmp_path)
    assert not well
    assert lines[0] == "0 6 Calibrating"
    assert list(out.glob("*/parts*/*"))  # what was done is kept
    well, lines = launched(SCRIPT, [model_folder, out], tmp_path)
    assert well
    assert int(lines[0].split()[0]) >= 2, "it began anew"
    assert {"done 0", "done 1"} < set(lines)
    assert lines.count("0 0 Timing layers") == 1  # only the main process reports
    for name in (profile.PROFILE, profile.ARRAYS):
        same = [(profile.newest(folder) / name).read_bytes() for folder in (alone, out)]
        assert same[0] == same[1]


def test_the_items_of_a_team_are_shared_without_a_rest() -> None:
    items = list(range(7))
    shares = [Team(place, 3).share(items) for place in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [Team(place, 3).is_main for place in range(3)] == [True, False, False]


def test_a_lone_process_is_a_team_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = team()
    assert alone == Team(0, 1)
    assert alone.agree(lambda: 5) == 5
    assert alone.share([1, 2]) == [1, 2]
    alone.wait()


def test_what_was_written_elsewhere_is_missed(tmp_path: Path) -> None:
    """As where the hosts of a team do not share a folder."""
    parts = Parts(tmp_path, {}, {"kl": 1}, 3)
    parts.add([0, 2], {"kl": [[0.5], [0.7]]})
    assert parts.undone() == [1]
    with pytest.raises(RunFailed, match=r"results of all 3 samples; got 2\. .* --out"):
        parts.whole()
