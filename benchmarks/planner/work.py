"""Measuring in several processes, and keeping what was measured."""

from __future__ import annotations

import ast
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import Memory, Parallel, delayed
from joblib.memory import MemorizedFunc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.planner import world
from tpcal.plans.local_paths import EMBEDDED

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Work:
    """Where measurements are kept, how many processes make them, and how long it took.

    Attributes:
        folder: Keeps every result, so that a run which was stopped goes on where it was.
        model: What the processes measure.
        seconds: Of every stage of this run.
    """

    folder: Path
    n_processes: int
    console: Console
    model: str = EMBEDDED
    seconds: dict[str, float] = field(default_factory=dict)

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], title: str
    ) -> list[Any]:
        """The function's results in order; those known from an earlier run are read."""
        kept = self.kept(function)
        runs = Parallel(n_jobs=self.n_processes, return_as="generator")(
            delayed(_of_model)(self.model, kept, given) for given in arguments
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        started = time.perf_counter()
        with Progress(
            *columns, TimeElapsedColumn(), console=self.console, transient=True
        ) as progress:
            results = list(progress.track(runs, total=len(arguments), description=title))
        self._log(f"{title}: {len(arguments)}", started)
        return results

    def kept(self, function: Callable[..., Any]) -> MemorizedFunc:
        """The function, remembering on disk what it returned."""
        return Memory(self.folder, verbose=0).cache(function)

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


def _of_model(model: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    world.use(model)
    return function(*arguments)


def code(*folders: str) -> str:
    """A short hash of the project's own code in these folders; comments do not count."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:12]
