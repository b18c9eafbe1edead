"""The steps of an evidence run: commands of tpcal, and the file that each one makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpcal.calibrate.profile import Profile
from tpcal.plans.errors import BudgetError
from tpcal.plans.published.at_budget import at_budget

PUBLISHED = (
    "btp-llava-released",
    "dart-128",
    "todre-25",
    "fastv",
    "pyramiddrop",
    "divprune",
    "cdpruner",
    "vtw",
)
"""Presets that every plan is compared with, at the plan's budget."""
CONTROLS = "random,grid"
TIMED = 0.22
"""Layer average of the plan that is timed, or else the smallest one of the run."""
TIMED_BESIDE = ("fastv", "divprune")
"""Presets that are timed beside it: a cut in the decoder, and one before it. Timing all presets
would take twice as long and say little more, as times follow from the numbers of tokens."""
SLOWER = 6
"""Exit code of `tpcal bench` if a plan is slower; its files are written all the same."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and where it is written."""

    model: str
    results: Path
    """Folder of the files that are sent: a few hundred kB."""
    work: Path
    """Folder of profiles and kept answers, with which the run continues."""
    budgets: tuple[float, ...] = (0.1, 0.22, 0.35, 0.5)
    data: tuple[str, ...] = ()
    """Options of the data: ``("--data", "lite")``; without any, the default of the commands."""
    machine: tuple[str, ...] = ()
    """Options of every command that runs the model: ``("--device", "cuda")``."""
    memory: tuple[str, ...] = ()
    """Options of every command that shrinks its batches to fit: ``("--memory", "40GB")``."""
    samples: int | None = None
    """Samples of the calibration."""
    questions: int | None = None
    """Questions that every plan answers."""
    batch_sizes: str = "1,8"
    """Batches that are timed."""
    merge: str | None = None
    """What plans do with tokens that leave, as of `tpcal calibrate`; None: they are dropped."""
    jobs: int = 1
    """Searches that run at once, and evaluations."""

    def plan(self, budget: float) -> Path:
        """The plan of a budget."""
        return self.results / f"plan-{budget:g}.yaml"

    def answers(self, budget: float) -> Path:
        """The answers with that plan."""
        return self.results / f"eval-{budget:g}.json"


@dataclass(frozen=True)
class Step:
    """One command, and the file that it makes."""

    title: str
    command: tuple[str, ...]
    """Arguments of `tpcal`."""
    makes: Path | None
    """None of a calibration, which itself returns at once what it has finished."""
    accepted: tuple[int, ...] = (0,)
    """Exit codes with which the file is whole."""
    reads: tuple[Path, ...] = ()
    """Files of earlier steps; if one of them has changed, this step has to run anew."""


def calibration(settings: Settings) -> Step:
    """The first step; all others need its profile."""
    options = [*settings.data, *settings.machine, *settings.memory]
    options += _number("--samples", settings.samples)
    options += ["--merge", settings.merge] if settings.merge else []
    out = str(settings.work / "profiles")
    command = ("calibrate", "--model", settings.model, "--out", out, *options)
    return Step("calibrate", command, None)


def further(settings: Settings, folder: Path, profile: Profile) -> Iterator[Step]:
    """The steps after calibration.

    Args:
        settings: What is measured.
        folder: The profile's folder.
        profile: The profile in it, whose depth says which presets can be as cheap as a budget.
    """
    for budget in settings.budgets:
        plan = settings.plan(budget)
        options = ("--output", str(plan), *settings.machine, *settings.memory)
        command = ("plan", str(folder), "--budget", f"{budget:g}", *options)
        yield Step(f"plan at {budget:g}", command, plan)
    for budget in settings.budgets:
        yield _answers(settings, budget, _published(budget, profile))
    timed = TIMED if TIMED in settings.budgets else min(settings.budgets)
    yield _times(settings, timed, _published(timed, profile, TIMED_BESIDE))
    yield _report(settings, timed, folder)


def _answers(settings: Settings, budget: float, beside: list[str]) -> Step:
    plan, made = settings.plan(budget), settings.answers(budget)
    controls = ("--control", CONTROLS, "--control-of", str(plan))
    options = (*settings.machine, *settings.memory, *_number("--samples", settings.questions))
    files = ("--out", str(settings.work), "--output", str(made))
    command = ("eval", "--plan", str(plan), *beside, *controls, *options, *files)
    return Step(f"answers at {budget:g}", command, made, reads=(plan,))


def _times(settings: Settings, budget: float, beside: list[str]) -> Step:
    plan, made = settings.plan(budget), settings.results / "bench.json"
    sizes = ("--batch-sizes", settings.batch_sizes)
    command = ("bench", "--plan", str(plan), *beside, *sizes, *settings.machine)
    return Step("times", (*command, "--output", str(made)), made, (0, SLOWER), reads=(plan,))


def _report(settings: Settings, budget: float, folder: Path) -> Step:
    plans = [settings.plan(b) for b in settings.budgets]
    answers, times = settings.answers(budget), settings.results / "bench.json"
    made = settings.work / "report.html"
    measured = ("--evaluation", str(answers), "--bench", str(times))
    command = ("report", str(folder), *map(str, plans), *measured, *settings.machine)
    reads = (*plans, answers, times)
    return Step("report", (*command, "--output", str(made)), made, reads=reads)


def _published(budget: float, profile: Profile, names: Sequence[str] = PUBLISHED) -> list[str]:
    """The options of every one of these presets that can be as cheap as the budget."""
    options = []
    for name in names:
        try:
            at_budget(name, budget, profile.shape.n_layers, profile.n_tokens)
        except BudgetError:
            continue
        options += ["--plan", f"preset:{name}@{budget:g}"]
    return options


def _number(option: str, value: int | None) -> tuple[str, ...]:
    return () if value is None else (option, str(value))
