"""The real thing: `LMMS_EVAL_PYTHON=…/bin/python pytest -m lmms` runs lmms-eval's command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tpcal.calibrate.evaluation.metrics import is_right
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.plans.executor.handle import apply
from tpcal.plans.plan_file import digest, load_plan

pytestmark = [pytest.mark.lmms, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
TASK = "embedded_questions"
N = 42


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where lmms-eval is called, with the questions where the task looks for them."""
    folder = tmp_path_factory.mktemp("lmms")
    skipped = shutil.ignore_patterns("*.parquet", "__pycache__")
    shutil.copytree(ROOT / "examples" / "lmms", folder / "examples" / "lmms", ignore=skipped)
    subprocess.run(
        [sys.executable, "examples/lmms/make_questions.py", str(N)], cwd=folder, check=True
    )
    return folder


def _run(folder: Path, model_args: str, *options: str, launcher: tuple[str, ...] = ()) -> str:
    """What the command prints."""
    python = os.environ.get("LMMS_EVAL_PYTHON")
    if python is None:
        pytest.skip("LMMS_EVAL_PYTHON must name the interpreter that lmms-eval is installed for.")
    command = [python, *launcher, "-m", "lmms_eval", "--model", "tpcal", "--tasks", TASK]
    command += ["--include_path", "examples/lmms", "--model_args", f"device=cpu,{model_args}"]
    done = subprocess.run(
        [*command, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _logged(folder: Path) -> list[dict[str, Any]]:
    """lmms-eval's record of every question, in their order."""
    (log,) = folder.rglob(f"*samples_{TASK}.jsonl")
    rows = map(json.loads, log.read_text().splitlines())
    return sorted(rows, key=lambda row: row["doc_id"])


def _expected(loaded: Loaded, samples: Samples, plan: str | None) -> list[str]:
    handle = apply(loaded.model, load_plan(plan)) if plan else None
    inputs = prompt_inputs(loaded.processor, list(samples), loaded.model)
    rows = generate_ids(loaded.model, loaded.processor, inputs, 16)
    if handle:
        handle.remove()
    tokenizer = loaded.processor.tokenizer
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


@pytest.mark.parametrize("pruned", [False, True])
def test_every_answer_is_that_of_tpcal(
    folder: Path, loaded: Loaded, plan_file: str, pruned: bool
) -> None:
    out = folder / f"out-{pruned}"
    arguments = f"pretrained=embedded{f',plan={plan_file}' if pruned else ''}"
    options = ("--batch_size", "5", "--log_samples", "--output_path", str(out))
    shown = _run(folder, arguments, *options)
    samples = load_samples(split="eval", n=N)
    expected = _expected(loaded, samples, plan_file if pruned else None)
    assert [row["filtered_resps"] for row in _logged(out)] == expected

    (file,) = out.rglob("*results.json")
    results = json.loads(file.read_text())
    right = [is_right(got, s.answer or "") for got, s in zip(expected, samples, strict=True)]
    assert results["results"][TASK]["accuracy,none"] == pytest.approx(sum(right) / N)
    for group in samples.groups:
        own = [r for r, g in zip(right, samples.sample_groups, strict=True) if g == group]
        assert results["results"][TASK][f"{group},none"] == pytest.approx(sum(own) / len(own))

    if pruned:
        plan_digest = digest(load_plan(plan_file))
        assert re.search(rf"plan: {plan_digest}, visual_tokens: 144\.0000", shown)
        measured = results["throughput"]["avg_layer_average_keep"]
        assert measured == pytest.approx((72 + 18) / (8 * 144))
    else:
        assert "plan: none" in shown
        assert "avg_layer_average_keep" not in results["throughput"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("pretrained=embedded,plan=nowhere.yaml", (), "No plan at nowhere.yaml."),
        (
            "pretrained=embedded",
            ("--batch_size", "auto"),
            "batch_size must be a number from 1 on; got auto.",
        ),
    ],
)
def test_errors_are_sentences(
    folder: Path, arguments: str, options: tuple[str, ...], message: str
) -> None:
    assert f"Error during evaluation: {message}" in _run(folder, arguments, *options)


def test_processes_share_the_questions(folder: Path, plan_file: str) -> None:
    options = ("--limit", "7", "--log_samples", "--output_path", str(folder / "two"))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2")
    shown = _run(folder, f"pretrained=embedded,plan={plan_file}", *options, launcher=launcher)
    assert "Running on rank 1" in shown
    assert [row["doc_id"] for row in _logged(folder / "two")] == list(range(7))
