"""Data sets of the Hub that are streamed, tried on local copies that are streamed, too."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tpcal.calibrate.inputs import streams
from tpcal.calibrate.inputs.samples import Columns, RowSettings, Samples, load_samples
from tpcal.calibrate.inputs.sources import undecoded
from tpcal.calibrate.measure import n_of_finals
from tpcal.plans import hub
from tpcal.plans.errors import UsageError

N_ROWS = 600
LOAD = datasets.load_dataset


def _row(at: int) -> dict[str, Any]:
    encoded = io.BytesIO()
    Image.new("RGB", (4, 4), (at % 256, at // 256, 0)).save(encoded, "PNG")
    broken = at % 5 == 4
    return {
        "image": {"bytes": b"no image" if broken else encoded.getvalue(), "path": None},
        "question": f"What is {at}?",
        "answer": str(at),
        "kind": f"kind {at % 3}",
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one split of rows, of which every fifth has no image that can be read."""
    folder = tmp_path_factory.mktemp("copy")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            **dict.fromkeys(("question", "answer", "kind"), datasets.Value("string")),
        }
    )
    rows = [_row(at) for at in range(N_ROWS)]
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.fixture(autouse=True)
def on_the_hub(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda _, **how: LOAD(str(copy), **how))


def _drawn(n: int, split: str = "calibration", group: str | None = None) -> Samples:
    columns, rows = Columns(group=group), RowSettings(skip_bad=True)
    return load_samples("org/name", n=n, split=split, columns=columns, rows=rows)


def test_calibration_and_evaluation_share_no_rows() -> None:
    seen, new = _drawn(200), _drawn(200, "eval")
    assert len(seen) == len(new) == 200
    assert not set(seen.identities) & set(new.identities)


@pytest.mark.parametrize("group", [None, "kind"])
def test_fewer_samples_are_the_first_of_more(group: str | None) -> None:
    few, many = _drawn(60, group=group), _drawn(200, group=group)
    assert many.identities[:60] == few.identities
    if group:
        assert min(Counter(few.sample_groups).values()) > 15


def test_further_rows_take_the_place_of_bad_ones() -> None:
    drawn = _drawn(100)
    assert len(drawn) == 100
    assert drawn.source.unreadable
    with pytest.raises(UsageError, match="--skip-bad"):
        load_samples("org/name", n=100)


def test_a_search_finds_further_samples_for_its_finals() -> None:
    drawn = _drawn(60)
    assert n_of_finals(60, drawn.source.n_questions) == 120


def test_only_the_rows_that_are_needed_are_fetched() -> None:
    stream = undecoded(datasets.load_dataset("", split="train", streaming=True))
    rows = streams.in_random_order("rows", stream, 0, 0)
    assert [at for at, _ in zip(rows.numbers(), range(5), strict=False)] == list(range(5))
    assert len(rows) <= 6
    with pytest.raises(IndexError):
        rows[100]  # the stream was closed


@pytest.mark.parametrize("n_rows", [1, streams.BLOCK])
def test_small_data_sets_are_read_whole_and_drawn_from_both_ends(
    n_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for at in range(2 * n_rows) if at % 5 != 4 for row in [_row(at)]][:n_rows]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda _, **how: LOAD(str(tmp_path), **how))
    whole, other = (load_samples("org/name", n=n_rows, split=s) for s in ("calibration", "eval"))
    assert whole.source.n_rows == other.source.n_rows == n_rows
    assert whole.identities == other.identities[::-1]
