"""Files of figures beside what commands print."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tpcal.commands.outputs import check_outputs, check_place, write_figures
from tpcal.options import groups
from tpcal.plans.errors import UsageError


@click.command()
@groups.figures_option
def figures(outputs: tuple[Path, ...], force: bool) -> None:
    check_outputs(outputs, force)
    write_figures(outputs, {"n": 3}, "three")


def test_the_ending_says_how_figures_are_written(tmp_path: Path) -> None:
    data, page = tmp_path / "a.json", tmp_path / "a.MD"
    for _ in range(2):  # the second time over files of its own
        CliRunner().invoke(
            figures, ["-o", str(data), "-o", str(page)], obj="tpcal x", catch_exceptions=False
        )
    read = json.loads(data.read_text())
    assert read["n"] == 3
    assert read["command"] == "tpcal x"
    assert page.read_text().endswith("tpcal x -->\n\nthree\n")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(figures, ["-o", str(tmp_path / "a.txt")], obj="tpcal x")
    assert result.exit_code == 2
    assert "must end in .json or .md" in result.output


def test_a_file_of_someone_else_stays(tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    with pytest.raises(UsageError, match="was not made by tpcal"):
        check_outputs([notes])
    check_outputs([notes], force=True)
    with pytest.raises(UsageError, match="folder of"):
        check_outputs([tmp_path / "none" / "a.md"])


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tpcal.commands.outputs.TemporaryFile", refused)
    with pytest.raises(UsageError, match="cannot be written: Permission denied. Name a file else"):
        check_place(tmp_path / "plan.yaml")
