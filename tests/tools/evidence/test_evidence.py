"""An evidence run: the commands it gives, and how it continues after one of them has failed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest
from click.testing import CliRunner
from pages import small_profile

from tools.evidence import run as runs
from tools.evidence.__main__ import from_here, main
from tools.evidence.run import INTERRUPTED, Journal, StepFailed, StepStopped, run
from tools.evidence.steps import Settings, Step, further
from tpcal import __version__
from tpcal.calibrate import profile as profiles


class Commands:
    """Takes the place of a shell: writes the files that the commands would, until one fails."""

    def __init__(self) -> None:
        self.given: list[tuple[str, ...]] = []
        self.fails: str | None = None
        self.code = 1
        self.interrupted: str | None = None
        self.slower = False
        self.before: Callable[[str], object] = lambda name: None

    def __call__(self, command: Sequence[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        name, *options = command[3:]
        self.given.append((name, *options))
        self.before(name)
        if name == self.fails:
            return subprocess.CompletedProcess(command, self.code)
        if name == self.interrupted:
            raise KeyboardInterrupt
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


def test_searches_run_at_once_and_evaluations_wait_for_all_of_them(
    settings: Settings, commands: Commands
) -> None:
    both = Barrier(2, timeout=60)  # breaks unless two commands are under way at the same time
    commands.before = lambda name: name in ("plan", "eval") and both.wait()
    run(replace(settings, jobs=2))
    assert commands.names() == ["calibrate", "plan", "plan", "eval", "eval", "bench", "report"]
    steps = json.loads((settings.results / "summary.json").read_text())["steps"]
    assert [step["title"] for step in steps[1:3]] == ["plan at 0.22", "plan at 0.5"]


def test_a_failed_step_keeps_those_that_wait_from_beginning(
    settings: Settings, commands: Commands
) -> None:
    commands.fails = "plan"
    with pytest.raises(StepFailed, match=r"plan at 0\.1"):
        run(replace(settings, budgets=(0.1, 0.22, 0.35, 0.5)))
    assert commands.names() == ["calibrate", "plan"]


def test_another_command_is_run_again(settings: Settings, commands: Commands) -> None:
    run(settings)
    commands.given = []
    run(replace(settings, questions=70))
    assert commands.names() == ["calibrate", "eval", "eval"]


def test_answers_and_times_of_another_plan_are_measured_anew(
    settings: Settings, commands: Commands
) -> None:
    run(settings)
    commands.given = []
    settings.plan(0.22).write_text("another plan")
    run(settings)
    assert commands.names() == ["calibrate", "eval", "bench", "report"]
    assert str(settings.plan(0.22)) in commands.given[1]
    summary = json.loads((settings.results / "summary.json").read_text())
    known = {"title", "command", "tpcal", "seconds"}
    assert all(step.keys() == known for step in summary["steps"])


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


@pytest.mark.parametrize("signalled", ["the whole run", "the command alone"])
def test_a_run_that_was_interrupted_says_so_and_continues(
    signalled: str,
    settings: Settings,
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if signalled == "the whole run":
        commands.interrupted = "plan"
    else:
        commands.fails, commands.code = "plan", INTERRUPTED
    with pytest.raises(StepStopped, match=r"plan at 0\.22"):
        run(settings)
    ended = CliRunner().invoke(main, ["tiny", "--results", "r"])
    assert ended.exit_code == INTERRUPTED
    assert ended.output.endswith("Stopped in the step plan at 0.1. The same command continues.\n")
    commands.interrupted, commands.fails, commands.given = None, None, []
    run(settings)
    assert commands.names()[:3] == ["calibrate", "plan", "plan"]


def test_steps_are_numbered_and_those_measured_before_are_named(
    settings: Settings, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings)
    first = capsys.readouterr().out
    assert "[1/7] calibrate\n" in first
    assert "[7/7] report\n" in first
    run(settings)
    again = capsys.readouterr().out
    plan = settings.results / "plan-0.22.yaml"
    assert f"[2/7] plan at 0.22: measured before, {plan}\n" in again


def test_a_step_has_the_seconds_of_all_its_parts_and_counts_only_when_it_ended(
    tmp_path: Path,
) -> None:
    journal, made = Journal(tmp_path / "steps.json"), tmp_path / "plan.yaml"
    step = Step("plan", ("plan",), made)
    made.write_text("of an earlier run")
    journal.add(step, 40, ended=False)
    assert not journal.holds(step)
    journal.add(step, 2, ended=True)
    assert journal.holds(step)
    ended = journal.steps()["plan"]
    assert ended == {"command": "tpcal plan", "tpcal": __version__, "reads": {}, "seconds": 42}


def test_files_that_are_sent_name_no_folder_of_this_machine(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.evidence.__main__.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, ["tiny"], catch_exceptions=False)
    assert ended.exit_code == 0
    assert ended.output.endswith("results/tiny is complete.\n")
    assert str(tmp_path) not in (tmp_path / "results" / "tiny" / "summary.json").read_text()
    assert from_here(Path("/elsewhere")) == Path("/elsewhere")


def test_merging_is_chosen_by_the_calibration_and_has_a_folder_of_its_own(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.evidence.__main__.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, ["tiny", "--merge", "proportional"], catch_exceptions=False)
    assert ended.exit_code == 0
    assert ended.output.endswith("results/tiny-proportional is complete.\n")
    first, *others = commands.given
    assert list(pairwise(first)).count(("--merge", "proportional")) == 1
    assert ("--out", "tpcal-out/evidence/tiny-proportional/profiles") in pairwise(first)
    assert not [command for command in others if "--merge" in command]  # the profile says it
    summary = json.loads((tmp_path / "results/tiny-proportional/summary.json").read_text())
    assert (summary["model"], summary["merge"]) == ("tiny", "proportional")
    commands.given = []
    assert CliRunner().invoke(main, ["tiny"]).exit_code == 0
    assert "--merge" not in commands.given[0]
    assert len(commands.given) > 1  # nothing of the other run is taken for this one's
    assert "merge" not in json.loads((tmp_path / "results/tiny/summary.json").read_text())


def test_every_command_that_shrinks_its_batches_gets_the_limits(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.evidence.__main__.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    limits = ["--batch-size", "4", "--memory", "40GB"]
    assert CliRunner().invoke(main, ["tiny", *limits], catch_exceptions=False).exit_code == 0
    for command in commands.given:
        given = {("--batch-size", "4"), ("--memory", "40GB")} & set(pairwise(command))
        assert len(given) == (2 if command[0] in ("calibrate", "plan", "eval") else 0), command


def test_times_are_of_the_plan_and_two_published_schedules(settings: Settings) -> None:
    (times,) = (s for s in further(settings, Path("p"), small_profile()) if s.title == "times")
    plans = [after for word, after in pairwise(times.command) if word == "--plan"]
    assert plans == [str(settings.plan(0.22)), "preset:fastv@0.22", "preset:divprune@0.22"]
