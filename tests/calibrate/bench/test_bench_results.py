"""The records of `tpcal bench`: what is written is read again, also by older versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tpcal.calibrate.bench.bench_results import BenchResults, Machine
from tpcal.calibrate.bench.ratios import Cell, GenerationRun, Repeat
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.plans.errors import UsageError

MACHINE = Machine("cpu", "sdpa", "float32", 1, "0.2", "2", "4", "Linux")
MODEL = ModelFacts("tiny", "llava", "sha256:1", "float32", "cpu")


def _run(name: str, factor: float) -> GenerationRun:
    repeats = tuple(Repeat(factor * (10 + i), factor * (7 + i), 2.0, 100 + i) for i in range(9))
    return GenerationRun(name, repeats, None, 500)


CELLS = (Cell(2, 144, 20, 10, 16, _run("unpruned", 1), (_run("plan.yaml", 1.5),)),)


@pytest.mark.parametrize("subject", [MODEL, {"name": "llava-1.5-7b", "n_layers": 4}])
def test_what_is_written_is_read_again(tmp_path: Path, subject: ModelFacts) -> None:
    results, path = BenchResults.of(subject, MACHINE, CELLS), tmp_path / "bench.json"
    path.write_text(json.dumps(results.to_json()))
    assert BenchResults.load(path) == results
    assert ("model" in results.to_json()) == (subject is MODEL)
    assert ("geometry" in results.to_json()) == (subject is not MODEL)


def test_results_hold_what_the_tables_show() -> None:
    results = BenchResults.of(MODEL, MACHINE, CELLS)
    (cell,) = results.cells
    (plan,) = cell.plans
    assert results.repeats == 9
    assert cell.title == "batch 2, 144 + 10–20 tokens"
    assert plan.slower == ("ttft",)
    assert plan.decoder_ratio is not None
    assert plan.decoder_ratio.median == pytest.approx(1.5)
    assert (cell.unpruned.ratios, cell.unpruned.decoder_ratio) == ({}, None)
    assert results.hidden_slowdown is not None
    assert results.hidden_slowdown.share == pytest.approx(0.5)


def test_an_older_file_is_read(tmp_path: Path) -> None:
    results, path = BenchResults.of(MODEL, MACHINE, CELLS), tmp_path / "bench.json"
    data = results.to_json()
    del data["hidden_slowdown"], data["cells"][0]["n_text_least"]
    del data["cells"][0]["runs"][1]["decoder_ratio"]
    path.write_text(json.dumps(data))
    read = BenchResults.load(path)
    assert read.hidden_slowdown is None
    assert read.cells[0].n_text_least == 20
    (plan,) = read.cells[0].plans
    assert plan == replace(results.cells[0].plans[0], decoder_ratio=None)


def test_a_file_without_its_machine_is_refused(tmp_path: Path) -> None:
    data = BenchResults.of(MODEL, MACHINE, CELLS).to_json()
    del data["machine"]["attention"]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="'attention' is missing in it. Write it again"):
        BenchResults.load(path)
