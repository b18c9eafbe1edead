"""Broken files that did harm once, or could: each is refused in one line, or is a good file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz import tried
from fuzz.broken import edited
from searches import search

pytestmark = pytest.mark.timeout(120)


def cases(folder: str) -> list[Path]:
    """Files of the corpus."""
    found = sorted((tried.CORPUS / folder).iterdir())
    assert found
    return found


def name(path: Path) -> str:
    """What a case is called in the output."""
    return path.stem


def edits_in(path: Path) -> list[tuple[tuple[Any, ...], Any]]:
    """The changes that a file of the corpus holds."""
    return [(tuple(place), value) for place, value in json.loads(path.read_text("utf-8"))]


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TPCAL_DEBUG", raising=False)


@pytest.mark.parametrize("path", cases("plans/refused"), ids=name)
def test_broken_plans_are_refused(path: Path) -> None:
    assert not tried.plan_file(path)
    assert not tried.command(["check", str(path)])


@pytest.mark.parametrize("path", cases("plans/accepted"), ids=name)
def test_odd_plans_are_the_same_when_read_again(path: Path) -> None:
    assert tried.plan(path.read_text("utf-8"))
    assert tried.command(["show", str(path)])


@pytest.fixture(scope="module")
def profile_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tried.small_data(tmp_path_factory.mktemp("profile"))[0]


@pytest.mark.parametrize("path", cases("profiles"), ids=name)
def test_sealed_profiles_that_mean_harm_are_refused(
    tmp_path: Path, profile_data: dict[str, Any], path: Path
) -> None:
    tried.write_profile(tmp_path, edited(profile_data, edits_in(path)))
    assert not tried.profile(tmp_path)


def test_a_sealed_profile_that_is_good_is_accepted(
    tmp_path: Path, profile_data: dict[str, Any]
) -> None:
    tried.write_profile(tmp_path, profile_data)
    assert tried.profile(tmp_path)


@pytest.fixture(scope="module")
def journal_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("journal") / "study.journal"
    search(tried.small_profile(), 0.4, measurer=tried.Formula(), n_trials=2, storage=path)
    return path.read_text("utf-8")


@pytest.mark.parametrize("path", cases("journals"), ids=name)
def test_journals_that_mean_harm_are_refused(
    tmp_path: Path, journal_text: str, path: Path
) -> None:
    mark, place, value = json.loads(path.read_text("utf-8"))
    rows = journal_text.splitlines()
    at = next(i for i, row in enumerate(rows) if mark in row)
    rows[at] = json.dumps(edited(json.loads(rows[at]), [(tuple(place), value)]))
    journal = tmp_path / "study.journal"
    journal.write_text("\n".join(rows) + "\n")
    assert not tried.journal(journal)


@pytest.mark.parametrize("path", cases("evaluations") + cases("benches"), ids=name)
def test_figures_that_mean_harm_are_refused(tmp_path: Path, path: Path) -> None:
    kind, run = {"evaluations": ("evaluation", tried.evaluation)}.get(
        path.parent.name, ("bench", tried.bench)
    )
    data = json.loads((tried.SEEDS / f"{kind}.json").read_text("utf-8"))
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(edited(data, edits_in(path))))
    assert not run(file)


@pytest.mark.parametrize("path", cases("rows"), ids=name)
def test_rows_that_mean_harm_are_refused(tmp_path: Path, path: Path) -> None:
    shutil.copy(tried.SEEDS / "red.png", tmp_path)
    shutil.copy(path, tmp_path)
    assert not tried.rows(tmp_path / path.name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_at_once_by_a_real_process(tmp_path: Path, kind: str) -> None:
    path = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero"), "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    words = [sys.executable, "-m", "tpcal", "check", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"tpcal: error: {path} must be a plan file; got ")
