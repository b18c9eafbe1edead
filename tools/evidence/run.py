"""Runs the steps one after another; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from tools.evidence.steps import CONTROLS, PUBLISHED, Settings, Step, calibration, further
from tpcal import __version__
from tpcal.calibrate.drop_all_depth import drop_all_curve, safe_depths
from tpcal.calibrate.profile import Profile
from tpcal.plans.yaml_files import write_atomic
from tpcal.workflow.profiles import load_profile

SUMMARY = "summary.json"


class StepFailed(Exception):
    """A command ended with an error, which it has printed itself."""


@dataclass(frozen=True)
class Journal:
    """The steps that have ended, with their commands and seconds, in a file."""

    path: Path

    def steps(self) -> dict[str, Any]:
        """The command and seconds of every step, by its title."""
        return dict(json.loads(self.path.read_text())) if self.path.exists() else {}

    def holds(self, step: Step) -> bool:
        """Whether the file of the step is there and was made by the same command."""
        ended = self.steps().get(step.title)
        if ended is None or step.makes is None or not step.makes.exists():
            return False
        return bool(ended["command"] == shown(step))

    def add(self, step: Step, seconds: float) -> None:
        """Writes a step down. A step that was continued has the seconds of all its parts."""
        steps = self.steps()
        before = steps.get(step.title, {})
        if before.get("command") == shown(step):
            seconds += before["seconds"]
        write_json(self.path, {**steps, step.title: {"command": shown(step), "seconds": seconds}})


def run(settings: Settings) -> None:
    """Measures what is missing and writes the summary.

    Raises:
        StepFailed: A command ended with an error. The same call continues after it.
    """
    for folder in (settings.results, settings.work):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.work / "steps.json")
    first = calibration(settings)
    carry_out(first, journal)
    folder, profile = load_profile(settings.work / "profiles")
    steps = list(further(settings, folder, profile))
    for step in steps:
        carry_out(step, journal)
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


def carry_out(step: Step, journal: Journal) -> None:
    """Runs the command of a step, unless it has ended before."""
    if journal.holds(step):
        return
    started = time.monotonic()
    _call(step)
    journal.add(step, round(time.monotonic() - started))


def _call(step: Step) -> None:
    click.echo(f"$ {shown(step)}")
    ended = subprocess.run([sys.executable, "-m", "tpcal", *step.command], check=False)
    if ended.returncode not in step.accepted:
        raise StepFailed(step.title)


def shown(step: Step) -> str:
    """The command as a user types it."""
    return shlex.join(("tpcal", *step.command))


def summary(
    settings: Settings, profile: Profile, steps: list[Step], journal: Journal
) -> dict[str, Any]:
    """What the other files do not say: the profile in short, and the commands with their times."""
    ended = journal.steps()
    return {
        "model": settings.model,
        "tpcal": __version__,
        "budgets": list(settings.budgets),
        "n_layers": profile.shape.n_layers,
        "n_tokens": profile.n_tokens,
        "n_samples": len(profile.sample_group),
        "n_probes": len(profile.probes),
        "drop_all": {
            "all": drop_all_curve(profile),
            **{group: drop_all_curve(profile, group) for group in profile.groups},
        },
        "safe_depth": safe_depths(profile),
        "steps": [{"title": step.title, **ended[step.title]} for step in steps],
    }


def write_json(path: Path, data: Any) -> None:
    """Writes plain data as a file that a person can read."""
    write_atomic(path, json.dumps(data, indent=1) + "\n")
