"""Runs the steps one after another; a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from threading import Event, Lock
from typing import Any

import click

from tools.evidence.steps import CONTROLS, PUBLISHED, Settings, Step, calibration, further
from tpcal import __version__
from tpcal.calibrate.drop_all_depth import drop_all_curve, safe_depths
from tpcal.calibrate.profile import Profile
from tpcal.plans.yaml_files import write_atomic
from tpcal.terminal import Interrupted
from tpcal.workflow.profiles import load_profile

SUMMARY = "summary.json"
INTERRUPTED = Interrupted.exit_code


class StepFailed(Exception):
    """A command ended with an error, which it has printed itself."""


class StepStopped(Exception):
    """A command was interrupted."""


@dataclass(frozen=True)
class Journal:
    """The steps that have run, with their commands and seconds, in a file."""

    path: Path
    _writes: Lock = field(default_factory=Lock, repr=False, compare=False)

    def steps(self) -> dict[str, Any]:
        """The command and seconds of every step, by its title."""
        return dict(json.loads(self.path.read_text())) if self.path.exists() else {}

    def holds(self, step: Step) -> bool:
        """Whether the file of the step is there and was made by the same command from the same
        files."""
        ran = self.steps().get(step.title, {"ended": False})
        if step.makes is None or not step.makes.exists() or not ran.get("ended", True):
            return False
        return made_from(step).items() <= ran.items()

    def add(self, step: Step, seconds: float, *, ended: bool) -> None:
        """Writes a step down. A step that was continued has the seconds of all its parts."""
        with self._writes:
            steps = self.steps()
            before = steps.get(step.title, {})
            same = made_from(step)
            if same.items() <= before.items():
                seconds += before["seconds"]
            ran = {**same, "seconds": seconds}
            write_json(self.path, {**steps, step.title: ran | ({} if ended else {"ended": False})})


def run(settings: Settings) -> None:
    """Measures what is missing and writes the summary.

    Raises:
        StepFailed: A command ended with an error. The same call continues after it.
        StepStopped: A command was interrupted. The same call continues it.
    """
    for folder in (settings.results, settings.work):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.work / "steps.json")
    first, n_steps = calibration(settings), 3 + 2 * len(settings.budgets)
    click.echo(
        f"{n_steps} steps follow. What a step suggests as next comes by itself. After a stop the "
        "same command continues."
    )
    carry_out(first, journal, f"[1/{n_steps}]")
    folder, profile = load_profile(settings.work / "profiles")
    steps = list(further(settings, folder, profile))
    places = ((step, f"[{number}/{n_steps}]") for number, step in enumerate(steps, 2))
    # Steps of one command do not read each other's files; every other command reads those of all.
    for _, alike in groupby(places, lambda placed: placed[0].command[0]):
        together(list(alike), journal, settings.jobs)
    found = summary(settings, profile, [first, *steps], journal)
    write_json(settings.results / SUMMARY, found)


def estimate(settings: Settings) -> None:
    """Prints what calibration takes, as `tpcal calibrate` estimates it, and what follows it.

    Raises:
        StepFailed: The model or the data cannot be had.
    """
    first = calibration(settings)
    _call(Step(first.title, (*first.command, "--dry-run"), None))
    entries = 1 + len(PUBLISHED) + len(CONTROLS.split(","))
    budgets = ", ".join(f"{budget:g}" for budget in settings.budgets)
    n_answers = 1 + entries * len(settings.budgets)
    click.echo(
        f"Then plans are searched at layer averages of {budgets}, and every question is answered "
        f"up to {n_answers} times: once unpruned, and at each budget with the plan, "
        f"{len(PUBLISHED)} published schedules and the controls {CONTROLS}. Times and a report "
        "come last."
    )


def together(steps: Sequence[tuple[Step, str]], journal: Journal, n_jobs: int) -> None:
    """Runs steps that do not depend on each other, ``n_jobs`` of them at a time, in their order.

    Raises:
        StepFailed: A command ended with an error; no further one was begun after it.
        StepStopped: A command was interrupted; likewise.
    """
    ended_badly = Event()

    def unless_one_has_failed(step: Step, place: str) -> None:
        if ended_badly.is_set():
            return
        try:
            carry_out(step, journal, place)
        except BaseException:
            ended_badly.set()
            raise

    with ThreadPoolExecutor(n_jobs) as threads:
        running = [threads.submit(unless_one_has_failed, *placed) for placed in steps]
        try:
            for one in running:
                one.result()
        except KeyboardInterrupt:
            ended_badly.set()
            raise StepStopped(" or ".join(step.title for step, _ in steps)) from None


def carry_out(step: Step, journal: Journal, place: str) -> None:
    """Runs the command of a step, unless it has ended before.

    Args:
        step: The step.
        journal: Where it is written down, also if it does not end.
        place: Its number among all steps.
    """
    if journal.holds(step):
        click.echo(f"{place} {step.title}: measured before, {step.makes}")
        return
    click.echo(f"\n{place} {step.title}")
    started, ended = time.monotonic(), False
    try:
        _call(step)
        ended = True
    except KeyboardInterrupt:
        raise StepStopped(step.title) from None
    finally:
        journal.add(step, round(time.monotonic() - started), ended=ended)


def _call(step: Step) -> None:
    click.echo(f"$ {shown(step)}")
    ended = subprocess.run([sys.executable, "-m", "tpcal", *step.command], check=False)
    if ended.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if ended.returncode not in step.accepted:
        raise StepFailed(step.title)


def shown(step: Step) -> str:
    """The command as a user types it."""
    return shlex.join(("tpcal", *step.command))


def made_from(step: Step) -> dict[str, Any]:
    """The command and the version of a step, and a digest of each file that it reads, by name."""
    files = [path for path in step.reads if path.exists()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {"command": shown(step), "tpcal": __version__, "reads": digests}


def summary(
    settings: Settings, profile: Profile, steps: list[Step], journal: Journal
) -> dict[str, Any]:
    """What the other files do not say: the profile in short, and the commands with their times."""
    ended = journal.steps()
    return {
        "model": settings.model,
        **({"merge": settings.merge} if settings.merge else {}),
        "tpcal": __version__,
        "budgets": list(settings.budgets),
        "n_layers": profile.shape.n_layers,
        "n_tokens": profile.n_tokens,
        "n_samples": len(profile.sample_group),
        "n_probes": len(profile.probes),
        "drop_all": {
            "all": drop_all_curve(profile),
            "groups": {group: drop_all_curve(profile, group) for group in profile.groups},
        },
        "safe_depth": safe_depths(profile),
        "steps": [
            {"title": step.title}
            | {name: value for name, value in ended[step.title].items() if name != "reads"}
            for step in steps
        ],
    }


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as a file that a person can read."""
    write_atomic(path, json.dumps(data, indent=1) + "\n")
