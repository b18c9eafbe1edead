"""An evidence run: the commands it gives, and how it continues after one of them has failed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import small_profile

from tools.evidence import run as runs
from tools.evidence.__main__ import main
from tools.evidence.run import StepFailed, run
from tools.evidence.steps import Settings, further
from tpcal.calibrate import profile as profiles


class Commands:
    """Takes the place of a shell: writes the files that the commands would, until one fails."""

    def __init__(self) -> None:
        self.given: list[tuple[str, ...]] = []
        self.fails: str | None = None
        self.slower = False

    def __call__(self, command: Sequence[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        name, *options = command[3:]
        self.given.append((name, *options))
        if name == self.fails:
            return subprocess.CompletedProcess(command, 1)
        if name == "calibrate":
            _save_profile(Path(options[options.index("--out") + 1]))
        else:
            Path(options[options.index("--output") + 1]).write_text("made")
        return subprocess.CompletedProcess(command, 6 if name == "bench" and self.slower else 0)

    def names(self) -> list[str]:
        return [name for name, *_ in self.given]


def _save_profile(out: Path) -> None:
    folder = out / "tiny-0123456789"
    if not folder.exists():
        folder.mkdir(parents=True)
        profiles.save(small_profile(), folder)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(runs.subprocess, "run", made)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings("tiny", tmp_path / "results", tmp_path / "work", (0.22, 0.5))


def test_a_run_ends_with_a_summary_of_its_profile_and_commands(
    settings: Settings, commands: Commands
) -> None:
    commands.slower = True
    run(settings)
    assert commands.names() == ["calibrate", "plan", "plan", "eval", "eval", "bench", "report"]
    summary = json.loads((settings.results / "summary.json").read_text())
    assert summary["n_layers"] == small_profile().shape.n_layers
    assert [step["command"].split()[1] for step in summary["steps"]] == commands.names()
    assert summary["budgets"] == [0.22, 0.5]


def test_a_run_goes_on_after_the_step_that_failed(settings: Settings, commands: Commands) -> None:
    commands.fails = "bench"
    with pytest.raises(StepFailed, match="times"):
        run(settings)
    commands.fails, commands.given = None, []
    run(settings)
    assert commands.names() == ["calibrate", "bench", "report"]


def test_another_command_is_run_again(settings: Settings, commands: Commands) -> None:
    run(settings)
    commands.given = []
    run(replace(settings, questions=70))
    assert commands.names() == ["calibrate", "eval", "eval"]


def test_presets_that_cannot_be_as_cheap_are_left_out(settings: Settings) -> None:
    steps = list(further(settings, Path("p"), small_profile()))
    cheap, dear = (step.command for step in steps if step.title.startswith("answers"))
    assert "preset:divprune@0.22" in cheap
    assert "preset:vtw@0.22" in cheap
    least = replace(settings, budgets=(0.01,))
    (only,) = (
        s for s in further(least, Path("p"), small_profile()) if s.title == "answers at 0.01"
    )
    assert not [part for part in only.command if part.startswith("preset:vtw")]
    assert "preset:vtw@0.5" in dear


def test_a_failed_step_is_named_with_the_way_on(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.fails = "calibrate"
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, ["tiny", "--results", str(tmp_path / "results")])
    assert ended.exit_code == 1
    assert "The same command continues." in ended.output
