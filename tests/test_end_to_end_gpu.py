"""The way of a user with ``--device cuda``, on the built-in model: calibrate, plan, eval, bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tpcal.calibrate.profile import MEASURES, Profile, load, newest
from tpcal.cli import cli
from tpcal.plans.plan_file import load_plan

pytestmark = pytest.mark.gpu

CALIBRATE = [
    *("calibrate", "--data", "embedded", "--samples", "14", "--selectors", "attention,diversity"),
    *("--keeps", "0.5,0.1,0", "--layers", "1,3,5", "--batch-size", "4", "--dtype", "float32"),
]
Tpcal = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def tpcal(gpu: torch.device, folder: Path) -> Tpcal:
    """Runs a command line on the device, in a folder with a profile that was made there."""
    for package in ("datasets", "optuna", "scipy"):  # the commands ask for all of tpcal[plan]
        pytest.importorskip(package)

    def run(*args: str, device: str = str(gpu)) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("XDG_STATE_HOME", str(folder / "state"))
            done = CliRunner().invoke(cli, [*args, "--device", device], prog_name="tpcal")
        assert done.exit_code in (0, 6), done.output  # 6: at this size a plan may be slower
        if done.exit_code:
            assert args[0] == "bench", done.output
        return done.output

    run(*CALIBRATE, "--out", str(folder / "tpcal-out"))
    return run


@pytest.fixture(scope="module")
def profile(tpcal: Tpcal, folder: Path) -> Profile:
    return load(newest(folder / "tpcal-out"))


def test_deviations_are_those_of_the_cpu(tpcal: Tpcal, folder: Path, profile: Profile) -> None:
    tpcal(*CALIBRATE, "--out", str(folder / "cpu"), device="cpu")
    other = load(newest(folder / "cpu"))
    assert other.probes == profile.probes
    for name in MEASURES:
        np.testing.assert_allclose(profile.mean(name), other.mean(name), rtol=1e-2, atol=2e-3)
    assert profile.mean("kl").max() > 0.01


def test_times_of_layers_were_measured(profile: Profile) -> None:
    assert profile.layer_ms
    assert all(0 < ms < 1000 for _, ms in profile.layer_ms)


def test_a_recording_that_was_put_aside_gives_the_same_numbers(
    tpcal: Tpcal, folder: Path, profile: Profile
) -> None:
    tpcal(*CALIBRATE, "--memory", "200MB", "--out", str(folder / "little"))
    little = load(newest(folder / "little"))
    for name in MEASURES:
        np.testing.assert_allclose(profile.mean(name), little.mean(name), rtol=1e-3, atol=1e-4)


def test_a_plan_is_searched_evaluated_and_timed(tpcal: Tpcal, folder: Path) -> None:
    tpcal("plan", "--budget", "0.5", "--trials", "3")
    plan = load_plan(folder / "plan.yaml")
    assert plan.budget is not None
    assert abs(plan.budget.reached - 0.5) < 0.01
    options = ("--plan", "plan.yaml", "--samples", "28", "--dtype", "float32")
    tpcal("eval", *options, "--output", "there.json")
    tpcal("eval", *options, "--output", "here.json", device="cpu")
    there, here = (json.loads((folder / f"{name}.json").read_text()) for name in ("there", "here"))
    assert there["unpruned"]["accuracy"] == here["unpruned"]["accuracy"]
    (one,), (other,) = there["entries"], here["entries"]
    assert one["cost"] == other["cost"]
    assert abs(one["accuracy"]["value"] - other["accuracy"]["value"]) <= 1 / 28 + 1e-9
    assert abs(one["agreement"]["value"] - other["agreement"]["value"]) <= 1 / 28 + 1e-9


def test_bench_times_a_plan_on_the_device(tpcal: Tpcal, folder: Path, gpu: torch.device) -> None:
    tpcal(
        *("bench", "--plan", "preset:divprune@0.5", "--batch-sizes", "1", "--text", "20"),
        *("--new-tokens", "4", "--repeats", "9", "-o", "bench.json"),
    )
    data = json.loads((folder / "bench.json").read_text())
    if gpu.type == "cuda":
        assert torch.cuda.get_device_name(gpu) in json.dumps(data["machine"])
    (cell,) = data["cells"]
    for run in cell["runs"]:
        assert 0 < run["ttft_ms"]["median"] < 10_000
