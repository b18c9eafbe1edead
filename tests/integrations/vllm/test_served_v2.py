"""Plans in vLLM's V2 model runner: tests of the V1 runner, in a process that uses V2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import served
from served import PLANS, SMALL_POOL, Executor

from tpcal.calibrate.embedded import samples

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.usual,
    pytest.mark.skipif(served.ON_GPU, reason="Triton's interpreter runs on CPUs only"),
]

FOLDER = Path(__file__).parent
CASES = {
    "plans": ("test_served.py", "three or attention or question"),
    "preemption": (Path(__file__).name, "preempted"),
}


@pytest.mark.skipif(served.USES_V2, reason="runs these tests in another process")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_tests_pass_with_the_v2_runner(name: str) -> None:
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


@pytest.mark.skipif(not served.USES_V2, reason="test_served_together.py has more for V1")
@pytest.mark.timeout(600)
def test_preempted_requests_beside_texts_give_the_answers_of_the_executor(tmp_path: Path) -> None:
    plan, questions, n = PLANS["three cuts"], samples("eval", 10, seed=1), 24
    wanted = Executor().answers(plan, questions, n, min_new_tokens=n)
    pool = {**SMALL_POOL, "num_gpu_blocks_override": 72}
    images = [(served.prompt(s.question), [s.image]) for s in questions]
    texts = [(served.prompt(s.question, n_images=0), []) for s in questions[:4]]
    with served.engine(plan, tmp_path, **pool) as engine:
        alone = [engine.recorded([text], n, min_tokens=n).tokens[0] for text in texts]
        before = engine.counter("num_preemptions")
        found = engine.recorded([*images, *texts], n, min_tokens=n).tokens
        assert engine.counter("num_preemptions") > before
        assert engine.n_waited > 0
    assert [served.until_end(tokens) for tokens in found[: len(images)]] == wanted.tokens
    assert found[len(images) :] == alone
