"""Measuring in several processes, and keeping what was measured."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import optuna
from joblib import Memory, Parallel, delayed
from joblib.memory import MemorizedFunc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.planner import world
from tpcal.plans.local_paths import EMBEDDED, file_name
from tpcal.plans.yaml_files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("folder", "folders", "memory", "profiles")
"""Arguments that say where something is kept; results do not depend on them, so that the folder of
a run can be copied elsewhere."""
ABOUT = "about.json"
"""File of a folder that says what is measured."""
Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


class NotMeasured(Exception):
    """Something is asked for that no run has measured, by a run that only reads."""


@dataclass
class Work:
    """Where measurements are kept, how many processes make them, and how long it took.

    Attributes:
        folder: Keeps every result, so that a run which was stopped goes on where it was.
        model: What the processes measure.
        device: Where the model runs; None: where `world.use` puts it.
        only_kept: Whether nothing is measured, only read.
        merge: The ``merge`` of the plans.
        seconds: Of every stage of this run.
    """

    folder: Path
    n_processes: int
    console: Console
    model: str = EMBEDDED
    device: str | None = None
    only_kept: bool = False
    merge: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What the folder's measurements are of, as its file ``about.json`` says."""
        return json.dumps({"model": self.model, "device": self.device, "merge": self.merge})

    def check_folder(self) -> None:
        """Raises click.UsageError if the folder keeps another model, or another merging."""
        file = self.folder / ABOUT
        known = file.read_text(encoding="utf-8") if file.exists() else self.about
        if known != self.about:
            raise click.UsageError(f"--folder must be of {self.about}; got one of {known}.")

    def begin(self) -> None:
        """Makes the folder, and says in it what its measurements are of."""
        write_atomic(self.folder / ABOUT, self.about)

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], title: str
    ) -> list[Any]:
        """The function's results in order; those known from an earlier run are read."""
        return self.together([(function, given) for given in arguments], title)

    def together(self, calls: Sequence[Call], title: str) -> list[Any]:
        """The results of calls of several functions, made at the same time.

        Raises:
            NotMeasured: Only what is kept may be read, and not all results are.
        """
        lacking = sum(not self.knows(*call) for call in calls) if self.only_kept else 0
        if lacking:
            raise NotMeasured(f"{title}: {lacking} of {len(calls)} are not measured")
        runs = Parallel(n_jobs=1 if self.only_kept else self.n_processes, return_as="generator")(
            delayed(_of_model)((self.model, self.device, self.merge), self.kept(function), given)
            for function, given in calls
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        started = time.perf_counter()
        with Progress(
            *columns, TimeElapsedColumn(), console=self.console, transient=True
        ) as progress:
            results = list(progress.track(runs, total=len(calls), description=title))
        self._log(f"{title}: {len(calls)}", started)
        return results

    def kept(self, function: Callable[..., Any]) -> MemorizedFunc:
        """The function, remembering on disk what it returned."""
        places = [name for name in inspect.signature(function).parameters if name in PLACES]
        return Memory(self.folder, verbose=0).cache(function, ignore=places)

    def knows(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
        """Whether an earlier call has kept the function's result."""
        return bool(self.kept(function).check_call_in_cache(*arguments))

    def timed(self, name: str, stage: Callable[[], Any]) -> Any:
        """The stage's result."""
        started = time.perf_counter()
        result = stage()
        self.seconds[name] = time.perf_counter() - started
        self._log(f"[bold]{name}[/bold]", started)
        return result

    def _log(self, what: str, started: float) -> None:
        self.console.print(f"{what} ({time.perf_counter() - started:.0f} s)", highlight=False)


def _of_model(
    measured: tuple[str, str | None, str | None],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Any:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    world.use(*measured)
    return function(*arguments)


def code(*folders: str) -> str:
    """A short hash of the project's own code and weights in these folders; comments do not count.

    It is the same with every version of Python, whose syntax trees differ.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(_without_comments(path.read_text(encoding="utf-8")).encode())
        for path in sorted((ROOT / folder).rglob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def folder_of(model: str, device: str | None, merge: str | None) -> Path:
    """The folder that keeps a measurement with this code, unless another one is named."""
    name = file_name(model, device, merge)
    return ROOT / "tpcal-out/benchmark" / name / code("plans", "calibrate")


def _without_comments(text: str) -> str:
    """The lines of a program that have more than a comment."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())
