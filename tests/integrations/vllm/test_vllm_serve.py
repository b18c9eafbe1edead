"""The example's server and client: `vllm serve`, OpenAI's API, images as data URIs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from served import ENVIRONMENT, OF_GPUS, ON_GPU, Executor

import tpcal.calibrate.embedded
from tpcal.calibrate.embedded import samples

pytestmark = [pytest.mark.vllm, pytest.mark.usual]

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "vllm"
SMALL = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"),
    *(f"--{name.replace('_', '-')}={value}" for name, value in OF_GPUS.items() if ON_GPU),
)


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {**os.environ, **ENVIRONMENT, "PATH": path}
    return {**given, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):  # it starts three processes, which takes minutes on a busy machine
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urlopen("http://127.0.0.1:8000/health", timeout=5).close()
        except (URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:  # vLLM does not always hear this while it starts
        server.kill()


@pytest.mark.timeout(1200)
def test_the_example_serves_the_executors_answers(tmp_path: Path) -> None:
    log, plan = tmp_path / "log", tmp_path / "plan.yaml"
    command = ["sh", str(EXAMPLE / "serve.sh")]  # it makes a plan, and serves it on CPUs
    if ON_GPU:
        cuts = tpcal.Cut(2, 0.5, "diversity"), tpcal.Cut(4, 0.25, "diversity"), tpcal.Cut(6, 0.0)
        tpcal.save_plan(tpcal.Plan(name="example", cuts=cuts, scope="image"), plan)
        command += [str(tpcal.calibrate.embedded.FOLDER), str(plan), *SMALL]
    own = _environment()
    with (
        log.open("wb") as file,
        subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file, env=own) as server,
    ):
        try:
            _wait(server, log)
            output = subprocess.run(
                [sys.executable, str(EXAMPLE / "client.py")],
                capture_output=True,
                text=True,
                check=True,
                env=_environment(),
            ).stdout
            with urlopen("http://127.0.0.1:8000/metrics", timeout=30) as page:
                metrics = page.read().decode().splitlines()
        finally:
            _end(server)
    questions = samples("eval", 8)
    executor = Executor()
    tokens = executor.answers(tpcal.load_plan(plan), questions).tokens
    answers = executor.processor.batch_decode(tokens, skip_special_tokens=True)
    assert output.splitlines() == [
        f"{sample.question} {answer.strip()} (right: {sample.answer})"
        for sample, answer in zip(questions, answers, strict=True)
    ]
    assert "tpcal: Plan example (sha256:" in log.read_text()
    assert set(metrics) >= {
        'tpcal_visual_tokens_seen_total{model_name="pruned"} 1152.0',
        'tpcal_visual_tokens_kept_total{layer="2",model_name="pruned"} 576.0',
        'tpcal_visual_tokens_kept_total{layer="6",model_name="pruned"} 0.0',
        'tpcal_requests_pruned_total{model_name="pruned"} 8.0',
    }


def test_a_server_does_not_start_with_a_plan_that_does_not_run(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    tpcal.save_plan(tpcal.Plan(cuts=(tpcal.Cut(2, 0.5, "visionzip"),)), plan)
    model = str(tpcal.calibrate.embedded.FOLDER)
    ended = subprocess.run(
        ["sh", str(EXAMPLE / "serve.sh"), model, str(plan), *SMALL],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=600,
    )
    assert ended.returncode != 0
    assert "cuts[0].selector: visionzip needs the vision tower" in ended.stderr.splitlines()[-1]
