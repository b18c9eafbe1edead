"""Every row that docs/data.md shows is read as the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tpcal.calibrate.inputs import multiple_choice
from tpcal.calibrate.inputs.columns import GUESSES
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import load_samples

PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
ROWS = [line.strip() for line in PAGE.splitlines() if line.startswith("    {")]


def read(folder: Path, row: str) -> list[Sample]:
    for name in ("cat", "dog"):
        Image.new("RGB", (8, 6), "red").save(folder / f"{name}.png")
    (folder / "data.jsonl").write_text(row)
    return list(load_samples(str(folder / "data.jsonl")))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_read(tmp_path: Path, row: str) -> None:
    samples = read(tmp_path, row)
    keys = json.loads(row)
    assert len(samples) == (2 if "conversations" in keys else 1)
    for sample in samples:
        assert sample.images
        assert (sample.answer is None) == (keys.get("question") == "Which is larger?")
        if {"choices", "options", "A"} & set(keys):
            shown = "\n".join(f"    {line}" for line in sample.question.splitlines())
            assert f"\n{shown}\n" in PAGE
            assert sample.answer == "A"


def test_the_table_has_all_names() -> None:
    for name, guesses in {**GUESSES, "choices": multiple_choice.GUESSES}.items():
        (line,) = (line for line in PAGE.splitlines() if f"| `--{name}-column` |" in line)
        assert ", ".join(f"`{guess}`" for guess in guesses) in line
