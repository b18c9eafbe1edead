"""The benchmarks run, and say what they should, at sizes at which their times mean nothing."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import tpcal
from tpcal.benchmarks import planning_scale, prompt_embeddings
from tpcal.plans.plan_records import Cut, Plan
from tpcal.plans.selectors import names

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a file of the folder as a program, in this process, and gives what it prints."""

    def run(name: str, *words: object) -> str:
        monkeypatch.syspath_prepend(BENCHMARKS)  # as Python does for a program
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
        output, errors = capsys.readouterr()
        assert not done.value.code, errors
        return output

    return run


@pytest.mark.nightly
@pytest.mark.parametrize("geometry", ["tiny", pytest.param("tiny-qwen", marks=pytest.mark.slow)])
def test_the_executor_benchmark_counts_what_a_plan_saves(
    geometry: str, run_script: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    options = ["--geometry", geometry, "--dtype", "fp32", "--repeats", "1", "--decode", "1"]
    options += ["--tower-layers", "2"]
    printed = run_script("executor.py", *options, "--json", out, "--threads", "1")
    assert "achieved / ideal at least 0.90" in printed
    plans = {plan["name"]: plan for plan in json.loads(out.read_text())["plans"]}
    whole = json.loads(out.read_text())["whole_requests"]
    if geometry == "tiny":
        assert whole.keys() == {"unpruned", "by hand @0", *plans}
        assert all(value > 0 for value in whole.values())
        assert "Whole requests (generate: tower of 2 layers" in printed.replace("\n", " ")
    nothing = plans.pop("no-op x3")
    assert nothing["kv"] == nothing["ideal"] == nothing["layer_average_keep"] == 1
    assert len(plans) == 5
    for plan in plans.values():
        assert 0.19 < plan["layer_average_keep"] <= 0.22  # one token of 36 is up to 0.028
        kept = (36 * plan["layer_average_keep"] + 64) / (36 + 64)
        assert plan["kv"] == pytest.approx(kept)
        assert plan["ideal"] > 1 > plan["memory"]
        assert 0 < plan["selection"] < plan["overhead"]


def test_the_selection_benchmark_times_every_selector(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--tokens", "20", "--tokens", "36", "--batch", "2", "--keep", "0.25"]
    options = ["--hidden", "64", "--repeats", "1", "--threads", "1", "--clock", "cpu"]
    printed = run_script("selection.py", *sizes, *options, "--json", out)
    assert "batch 2, keep 25%" in printed
    results = json.loads(out.read_text())["results"]
    assert {r["selector"] for r in results} >= set(names())
    assert {r["n_tokens"] for r in results} == {20, 36}
    for result in results:
        assert result["share"] == pytest.approx(result["ms"] / result["prefill_ms"])
    beside = {r["selector"]: r["to_reference"] for r in results}
    assert {name for name, ratio in beside.items() if ratio is not None} == {
        *("cdpruner", "dart", "diversity", "diversity, max_sum", "vispruner")
    }


@pytest.mark.nightly
def test_the_memory_benchmark_finds_that_what_is_kept_is_less() -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--samples", "64", "--sides", "20"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent
    )
    assert done.returncode == 0, done.stderr
    *_, row, _ = done.stdout.strip().splitlines()
    tokens, samples, held, host, disk = (int(cell) for cell in row.strip("│").split("│"))
    assert (tokens, samples) == (400, 64)
    assert held > host > disk


def test_the_work_of_planning_is_timed_in_parts_at_any_size() -> None:
    words = ["--layers", "12", "--tokens", "64", "--samples", "30", "--groups", "3"]
    done = CliRunner().invoke(planning_scale.main, [*words, "--trials", "3"])
    assert done.exit_code == 0, done.output
    rows = [line.strip("│").split("│") for line in done.output.splitlines() if "│" in line]
    parts = {part.strip(): (float(seconds), float(peak)) for part, seconds, peak in rows}
    assert list(parts) == ["next probes", "first optimum", "search of 3 plans"]
    assert all(0 <= seconds < 60 for seconds, _ in parts.values())
    peaks = [peak for _, peak in parts.values()]
    assert peaks == sorted(peaks)


def test_the_benchmark_of_prompt_embeddings_compares_both_kinds_of_positions(
    tmp_path: Path,
) -> None:
    tpcal.save_plan(Plan(cuts=(Cut(0, 1.0, "grid"),)), tmp_path / "all.yaml")
    words = [str(tmp_path / "all.yaml"), "--samples", "14"]
    done = CliRunner().invoke(prompt_embeddings.main, words)
    assert done.exit_code == 0, done.output
    rows = [line.partition(": ")[2] for line in done.output.splitlines()[:3]]
    assert rows[0] == rows[1] == rows[2]  # a plan that keeps all tokens leaves no gap
    assert done.output.endswith("give the same answer to 1.000.\n")
