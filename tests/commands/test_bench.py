"""`tpcal bench` as a user runs it: what it prints, writes and refuses, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tpcal.calibrate.bench import synthetic_prompts
from tpcal.calibrate.bench.geometry import GEOMETRIES, build
from tpcal.calibrate.bench.ratios import Cell, GenerationRun, Repeat
from tpcal.cli import cli
from tpcal.commands.bench import bench, show
from tpcal.commands.bench_inputs import BenchSubject
from tpcal.plans.errors import SlowerError
from tpcal.plans.plan_file import save_plan
from tpcal.plans.plan_records import Cost, Cut, ModelIdentity, Plan

Tpcal = Callable[..., Result]
SHORT = ["--batch-sizes", "1", "--text", "20", "--new-tokens", "2"]
TINY = ["--model-geometry", "tiny", "--threads", "1"]
SPREAD = {"median", "low", "high"}


@pytest.fixture
def tpcal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tpcal:
    """Runs a command line in a folder with three plans."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    save_plan(Plan((), name="none"), "none.yaml")
    save_plan(Plan((Cut(2, 0.5, "attention"), Cut(5, 0.0)), model=ModelIdentity(8)), "plan.yaml")
    save_plan(Plan((Cut(20, 0.5, "grid"),), model=ModelIdentity(32)), "deep.yaml")
    return lambda *args: CliRunner().invoke(cli, ["bench", *args], prog_name="tpcal")


def test_a_plan_without_cuts_is_as_fast_as_the_unpruned_model(tpcal: Tpcal) -> None:
    done = tpcal("--plan", "none.yaml", "--model", "embedded", *SHORT, "--threads", "1")
    assert done.exit_code == 0, done.output
    assert "embedded, 8 layers" in done.stdout
    assert "batch 1, 144 + 20 tokens, 2 new" in done.stdout
    assert "Nowhere slower than unpruned beyond noise, in 1 cell" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_images_are_as_large_as_those_that_the_plan_was_made_for(
    tpcal: Tpcal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[float] = []
    monkeypatch.setattr(synthetic_prompts, "nearest_side", lambda _, n: wanted.append(n) or 336)
    cost = Cost(500, 20, (), 1.0, 1e9, 1e9, 1000, 1000)
    plan = Plan((), model=ModelIdentity(8), cost=cost)
    save_plan(plan, "costed.yaml")
    plans = ["--plan", "none.yaml", "--plan", "costed.yaml", "--model", "embedded"]
    assert tpcal(*plans, *SHORT, "--threads", "1").exit_code in (0, 6)
    assert wanted == [500]
    tpcal(*plans, *SHORT, "--threads", "1", "--image-size", "448")
    assert wanted == [500]


def test_real_widths_can_be_timed_without_weights(tpcal: Tpcal) -> None:
    plans = ["--plan", "plan.yaml", "--plan", "deep.yaml", "--plan", "preset:divprune@0.5"]
    files = ["-o", "bench.json", "-o", "bench.md"]
    sizes = ["--layers", "6", "--images", "2", *SHORT]
    done = tpcal(*plans, *TINY, *sizes, *files)
    assert done.exit_code in (0, 6), done.output  # either may be, at this size
    assert "tiny, 6 of 8 layers, random weights" in done.stdout
    assert "no figure includes a vision tower" in done.stdout
    assert "deep.yaml was made for a decoder, 32 layers" in " ".join(done.stdout.split())
    data = json.loads(Path("bench.json").read_text())
    assert data["made_by"].startswith("made by tpcal")
    assert data["geometry"]["n_layers"] == 6
    assert data["machine"]["attention"] == "sdpa"
    assert {"device", "dtype", "threads", "torch", "transformers", "tpcal"} <= set(data["machine"])
    (cell,) = data["cells"]
    sizes_of = ("batch_size", "n_visual", "n_text", "n_new")
    assert [cell[name] for name in sizes_of] == [1, 72, 20, 2]
    unpruned, *runs = cell["runs"]
    assert [run["name"] for run in runs] == ["plan.yaml", "deep.yaml", "preset:divprune@0.5"]
    for run in (unpruned, *runs):
        for times in ("ttft_ms", "token_ms", "tokens_per_s"):
            assert set(run[times]) == SPREAD
            assert run[times]["low"] <= run[times]["median"] <= run[times]["high"]
        assert run["peak_bytes"] > run["kv_bytes"] > 0
    for run in runs:
        assert set(run["ratios"]) == {"ttft", "token", "throughput"}
        assert run["kv_bytes"] < unpruned["kv_bytes"]
    assert bool(data["slower"]) == any(run["slower"] for run in runs) == (done.exit_code == 6)
    page = Path("bench.md").read_text()
    assert "| batch 1, 72 + 20 tokens, 2 new | unpruned |" in page
    assert page.count("\n|") == 2 + 4


def _cells(ttft_ms: float) -> tuple[Cell, ...]:
    def run(name: str, ms: float) -> GenerationRun:
        return GenerationRun(name, (Repeat(ms, ms / 2, 2.0, 100.0),) * 15, None, 500)

    return (Cell(1, 144, 20, 20, 16, run("unpruned", 5.6), (run("plan.yaml", ttft_ms),)),)


def _subject() -> BenchSubject:
    model = build(GEOMETRIES["tiny"], torch.float32, "cpu", "eager")
    return BenchSubject(model, lambda shape: {}, {}, {"name": "tiny"}, ("tiny",))


def test_cuts_that_cannot_stand_are_told_of(tpcal: Tpcal) -> None:
    plans = ["--plan", "deep.yaml", "--plan", "preset:fastv"]
    done = tpcal(*plans, *TINY, "--layers", "1", *SHORT)
    said = " ".join(done.output.split())
    assert "preset:fastv was made for a decoder, 32 layers; here no cut can stand" in said


def test_slower_is_an_error_and_the_figures_are_written_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    said = (
        "plan.yaml is slower than unpruned in the only cell: batch 1, 144 + 20 tokens: first token "
        "6.10 ms, unpruned 5.60 (+9 %)."
    )
    with click.Context(bench, obj="tpcal bench"), pytest.raises(SlowerError) as error:
        show(_subject(), _cells(6.1), [out])
    assert str(error.value) == said
    assert error.value.exit_code == 6
    assert "×1.09" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["slower"] == [said]
    assert data["machine"]["attention"] == "eager"
    assert data["cells"][0]["runs"][1]["peak_bytes"] is None


def test_faster_is_none(tmp_path: Path) -> None:
    with click.Context(bench, obj="tpcal bench"):
        show(_subject(), _cells(5.0), [tmp_path / "bench.md"])
    assert "Nowhere slower than unpruned beyond noise" in (tmp_path / "bench.md").read_text()


def test_everything_wrong_with_the_options_is_said_at_once(tpcal: Tpcal) -> None:
    done = tpcal("--plan", "none.yaml", "--layers", "2", "--repeats", "3")
    assert done.exit_code == 2
    assert "--layers must come with --model-geometry" in done.stderr
    assert "--repeats must be at least 11 for 12 comparisons" in done.stderr
    done = tpcal("--plan", "none.yaml", "--model-geometry", "tiny", "--layers", "9", "--offload")
    assert "--offload cannot go with --model-geometry" in done.stderr
    assert "--layers must be at most 8 for tiny; got 9." in done.stderr


def test_a_plan_that_does_not_fit_is_refused_before_anything_is_timed(tpcal: Tpcal) -> None:
    done = tpcal("--plan", "none.yaml", "--plan", "deep.yaml", "--model", "embedded")
    assert done.exit_code == 5
    assert "deep.yaml: model.n_layers must be 8" in done.stderr
    assert "batch" not in done.stderr
    silent = tpcal("--plan", "none.yaml")
    assert (silent.exit_code, "must be named with --model" in silent.stderr) == (2, True)
    save_plan(Plan((Cut(0, 0.5, "visionzip"),)), "eyes.yaml")
    done = tpcal("--plan", "eyes.yaml", *TINY)
    assert done.exit_code == 5
    assert "must not read the vision tower, which --model-geometry leaves out" in done.stderr


def test_files_of_others_are_kept(tpcal: Tpcal) -> None:
    Path("mine.md").write_text("mine")
    done = tpcal("--plan", "none.yaml", "-o", "mine.md")
    assert done.exit_code == 2
    assert "mine.md exists and was not made by tpcal" in done.stderr


def test_an_unknown_geometry_is_told_the_known_ones(tpcal: Tpcal) -> None:
    done = tpcal("--plan", "none.yaml", "--model-geometry", "llava")
    assert done.exit_code == 2
    assert "--model-geometry must be one of llava-1.5-7b, " in done.stderr
