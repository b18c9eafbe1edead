"""Which rows become samples, what is left out, and what happens to rows that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tpcal.calibrate import profile
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.samples import Columns, RowSettings, Samples, load_samples
from tpcal.cli import cli
from tpcal.plans.errors import UsageError

BAD: list[dict[str, Any]] = [
    {"image": "nowhere.png", "question": "Which colour?", "answer": "x"},
    {"image": "data.jsonl", "question": "Which colour?", "answer": "x"},
    {"image": "a.png", "question": "", "answer": "x"},
    {"image": "a.png", "question": "Which?", "choices": ["cat", "dog"], "answer": "cow"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight rows in two groups that can be read, four that cannot, and one without an image."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    good = {"image": "a.png", "answer": "red"}
    rows = [{**good, "question": f"Which colour, {at}?", "group": "ab"[at % 2]} for at in range(8)]
    rows = [*rows[:3], *BAD, *rows[3:], {"image": "", "question": "What?", "answer": "x"}]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def load(data: Path, **how: Any) -> Samples:
    return load_samples(str(data), rows=RowSettings(skip_bad=True), **how)


def test_rows_that_cannot_be_read_are_refused_unless_asked(data: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.jsonl row \d+: "):
        load_samples(str(data))
    samples = load(data)
    assert [s.answer for s in samples] == ["red"] * 8
    bad = sorted(problem.split(":")[0] for problem in samples.source.unreadable)
    assert bad == [f"data.jsonl row {number}" for number in (4, 5, 6, 7)]
    assert samples.source.counts() == {"left_out": {"row without an image": 1}, "n_unreadable": 4}


def test_further_rows_take_the_place_of_those_that_are_skipped(data: Path) -> None:
    few, more = load(data, n=5), load(data, n=7)
    assert len(few) == 5
    assert [s.id for s in more][:5] == [s.id for s in few]
    assert few.fingerprint == load(data, n=5).fingerprint


def test_data_without_bad_rows_is_the_same_either_way(data: Path) -> None:
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:3] + lines[7:]))
    assert load(data, n=6).fingerprint == load_samples(str(data), n=6).fingerprint


def test_nothing_but_bad_rows_is_refused_with_the_first_reason(data: Path) -> None:
    data.write_text("\n".join(map(json.dumps, BAD[:1])))
    with pytest.raises(UsageError, match=r"that can be read.*The first: .*no image at nowhere"):
        load(data)


def test_the_choice_is_recorded_and_comes_back(data: Path) -> None:
    choice = DataChoice(data=str(data), skip_bad=True, choices_column="none")
    assert DataChoice.restored(choice.recorded()) == choice
    assert "skip_bad" not in DataChoice().recorded()


@pytest.fixture
def calibrate(data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(data.parent)
    least = ("--layers=1", "--keeps=0", "--selectors=grid", "--samples=8", "--device=cpu")
    words = ("calibrate", "--model", str(model_folder), "--data", data.name, *least)

    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, [*words, *args], prog_name="tpcal")

    return run


def test_skipped_rows_are_listed_and_counted_in_the_profile(
    calibrate: Callable[..., Result], data: Path
) -> None:
    refused = calibrate()
    assert refused.exit_code == 2
    assert "data.jsonl row" in refused.stderr
    assert "--skip-bad" in refused.stderr
    assert not (data.parent / "tpcal-out").exists()
    done = calibrate("--skip-bad")
    assert done.exit_code == 0, done.stderr
    assert "tpcal: note: data.jsonl: left out 1 row without an image.\n" in done.stderr
    assert "4 rows skipped as unreadable" in done.stderr
    assert "data.jsonl row 4: no image at nowhere.png" in done.stderr
    kept = profile.load(profile.newest(data.parent / "tpcal-out")).provenance
    assert kept["data"]["n_unreadable"] == 4
    assert kept["data"]["left_out"] == {"row without an image": 1}
    assert kept["samples"]["skip_bad"] is True


def test_questions_are_counted_and_not_rows(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    file = tmp_path / "data.jsonl"

    def write(rows: list[dict[str, Any]]) -> Samples:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_samples(str(file), n=6)

    asked = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "red"}]
    first = {"from": "human", "value": "<image> which?"}
    chats = write([{"image": "a.png", "conversations": [first, *asked[1:], *asked, *asked]}] * 20)
    assert chats.source.n_questions == 60
    row = {"question": "Which?", "answer": "red", "kind": "all"}
    rows = [{**row, "image": "a.png" if at % 10 == 0 else ""} for at in range(200)]
    some = write(rows).source.n_questions  # by the rows that were read
    assert some is not None
    assert 5 <= some <= 60
    grouped = load_samples(str(file), n=6, columns=Columns(group="kind"))
    assert grouped.source.n_questions == 20  # all rows were read to find the groups
