"""Cells of text files come out as they are written, whatever else stands in their column."""

from __future__ import annotations

import gc
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tpcal.calibrate.inputs import sources
from tpcal.calibrate.inputs.cells import read_answer
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.calibrate.inputs.text_files import read_rows
from tpcal.plans import hub
from tpcal.plans.errors import UsageError

ANSWERS = ["3", "007", "12.50", "NA", "None", "null", "True", "1e5", "2024-05-01", " x, y "]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    return tmp_path


def in_order(samples: Samples) -> list[str | None]:
    numbered = sorted(samples, key=lambda sample: int(sample.question.split()[-1]))
    return [sample.answer for sample in numbered]


def csv_of(answers: list[str], file: str = "image") -> str:
    lines = [f'a.png,question {at},"{text}"' for at, text in enumerate(answers)]
    return "\n".join([f"{file},question,answer", *lines, f"a.png,question {len(answers)},", ""])


@pytest.mark.parametrize("column", [ANSWERS, ["3", "4"], ["007"], ["12.50", "1"], ["NA"]])
def test_csv_cells_are_text_beside_an_empty_one(folder: Path, column: list[str]) -> None:
    (folder / "data.csv").write_text(csv_of(column))
    samples = load_samples(str(folder / "data.csv"))
    assert in_order(samples) == [*(text.strip() for text in column), None]


def test_csv_and_json_lines_give_the_same_samples(folder: Path) -> None:
    (folder / "data.csv").write_text(csv_of(ANSWERS))
    rows = [
        {"image": "a.png", "question": f"question {at}", "answer": text}
        for at, text in enumerate([*ANSWERS, None])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data.json").write_text(json.dumps(rows, indent=1))
    prints = {
        load_samples(str(folder / f"data.{s}")).fingerprint for s in ("csv", "jsonl", "json")
    }
    assert len(prints) == 1


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_numbers_of_json_are_as_they_are_written(folder: Path, suffix: str) -> None:
    literals = ["3", "12.50", "0.1", "1e5", '"2024-05-01"', '"007"', "NaN", "null"]
    rows = [
        f'{{"image": "a.png", "question": "q {at}", "answer": {literal}}}'
        for at, literal in enumerate(literals)
    ]
    text = "\n".join(rows) if suffix == "jsonl" else f"[{', '.join(rows)}]"
    (folder / f"data.{suffix}").write_text(text)
    found = in_order(load_samples(str(folder / f"data.{suffix}")))
    assert found == ["3", "12.50", "0.1", "1e5", "2024-05-01", "007", None, None]


def test_whole_numbers_of_parquet_have_no_fraction(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "image": ["a.png"] * 4,
        "question": [f"q {at}" for at in range(4)],
        "answer": pa.array([3.0, None, 12.5, 0.1], pa.float32()),
        "group": pa.array([1.0, None, 2.0, 2.0]),
    }
    parquet.write_table(pa.table(columns), folder / "data.parquet")
    samples = load_samples(str(folder / "data.parquet"))
    assert in_order(samples) == ["3", None, "12.5", "0.1"]
    assert samples.groups == ("1", "2", "all")


def test_folders_with_csv_files_are_read_as_text(folder: Path) -> None:
    (folder / "metadata.csv").write_text(csv_of(["007"], "file_name").rpartition("a.png")[0])
    assert [sample.answer for sample in load_samples(str(folder))] == ["007"]
    for name, text in (("train", "01"), ("test", "02")):
        (folder / f"{name}.csv").write_text(csv_of([text]))
    assert in_order(load_samples(str(folder))) == ["01", None]
    assert in_order(load_samples(str(folder), split="eval")) == ["02", None]


# pandas leaves the file open under datasets 4
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_csv_files_that_datasets_finds_are_read_as_text(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "a.png").unlink()
    Image.new("RGB", (8, 6), "red").save(folder.parent / "a.png")
    text = csv_of(["007"]).replace("a.png", str(folder.parent / "a.png"))
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        (folder / "data" / f"{name}.csv").write_text(text)
    assert in_order(load_samples(str(folder))) == ["007", None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of datasets
def test_streamed_csv_files_are_read_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: True)
    (tmp_path / "hub").mkdir()
    for name in ("train", "test"):
        (tmp_path / "hub" / f"{name}.csv").write_text(csv_of(["007"]))
    table = sources._hub(str(tmp_path / "hub"), "eval", 0)
    assert sorted(str(row["answer"]) for row in table.rows) == ["", "007"]
    gc.collect()  # a file that was left open would be told here


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        (3.0, "3"),
        (-2.0, "-2"),
        (12.5, "12.5"),
        (0.1, "0.1"),
        (float(np.float32(0.1)), "0.1"),
        (float(np.float32(1e-5)), "0.00001"),
        (1250000.25, "1250000.25"),
        (4194303.75, "4194303.75"),
        (float("nan"), None),
        (1e20, "1e+20"),
        ([3.0, 3.0, None], "3"),
        (date(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1), "2024-05-01"),
        (datetime(2024, 5, 1, 12, 30), "2024-05-01 12:30:00"),
    ],
)
def test_typed_cells_are_what_was_meant(cell: Any, answer: str | None) -> None:
    assert read_answer(cell) == answer


def test_rows_are_parsed_one_by_one_and_may_lack_columns(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"b": "\xc3\xa9"}')
    rows, columns = read_rows(tmp_path / "data.jsonl")
    assert columns == ("a", "b")
    assert [dict(row) for row in rows] == [{"a": 1}, {"b": "é"}]


def test_json_lines_may_be_called_json(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert len(read_rows(tmp_path / "data.json")[0]) == 2


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "image,image\n1,2\n", "name every column once"),
        ("a.csv", "image,question\na,b,c\n", r"line 2 must have 2 cells"),
        ("a.csv", "image\n\xff", "cannot be read"),
        ("a.json", "[1, 2]", "a list of JSON objects"),
        ("a.json", "[{]", "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.json", "[]", "must hold samples; got none"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=problem) as caught:
        load_samples(str(tmp_path / name))
    assert "\n" not in str(caught.value)
