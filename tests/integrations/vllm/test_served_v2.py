"""Plans in vLLM's V2 model runner: the tests of the V1 runner, in a process that uses V2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import served

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usual,
    pytest.mark.skipif(served.ON_GPU, reason="Triton's interpreter runs on CPUs only"),
]

FOLDER = Path(__file__).parent
CASES = {
    "plans": ("test_served.py", "test_answers and (three or attention or question)"),
    "questions": ("test_served_question.py", ""),
    "requests": ("test_served_together.py", ""),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_the_tests_of_the_v1_runner_pass(name: str) -> None:
    file, wanted = CASES[name]
    command = [sys.executable, "-m", "pytest", "-p", "served_v2", "-p", "no:cacheprovider"]
    command += ["-q", "-m", "vllm", "-W", "ignore", "-o", "filterwarnings=default"]
    path = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(FOLDER / file), "-k", wanted],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
