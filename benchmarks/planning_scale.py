"""Time and memory of planning apart from the model's runs, for any size of model and data.

Losses come from a formula, so what is measured is the search's own work.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
import optuna
from rich.console import Console
from rich.table import Table

from benchmarks.generated_world import FakeMeasurer, World
from tpcal.planner.prediction.next_probes import MOST_PASSES, next_probes, work
from tpcal.planner.prediction.optimum import worst_group_optimum
from tpcal.planner.problem import Problem
from tpcal.planner.search.one_budget import search
from tpcal.planner.search.settings import N_TRIALS, SearchSettings

T = TypeVar("T")
COARSE = 16
"""Probed layers of the profile that the next probes are chosen for."""
NOISE = 0.3
"""Standard deviation of the logarithms of the factors that the losses of a profile have."""
BATCHES = 10
"""Batches in which the samples are measured."""


class Clocked(FakeMeasurer):
    """A measurer that counts the seconds of the processor that its own work takes."""

    seconds = 0.0

    def losses(self, cuts: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
        """As those of `FakeMeasurer`."""
        batches, end = super().losses(cuts), object()
        while True:
            started = time.process_time()
            batch: Any = next(batches, end)
            self.seconds += time.process_time() - started
            if batch is end:
                return
            yield batch


@click.command()
@click.option("--layers", type=click.IntRange(min=2), default=80, show_default=True)
@click.option("--tokens", type=click.IntRange(min=2), default=10_000, show_default=True)
@click.option("--samples", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--groups", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--budget", type=click.FloatRange(0, 1), default=0.22, show_default=True)
@click.option("--trials", type=click.IntRange(min=1), default=N_TRIALS, show_default=True)
def main(layers: int, tokens: int, samples: int, groups: int, budget: float, trials: int) -> None:
    """Time the parts of planning on generated losses, and show the memory of the process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table("part", "processor s", "peak memory of the process so far, GB")

    def timed(part: str, run: Callable[[], T], elsewhere: Callable[[], float] = float) -> T:
        gc.collect()  # predictors hold caches that refer to them, and so outlive their use
        started = time.process_time()
        found = run()
        seconds = time.process_time() - started - elsewhere()
        table.add_row(part, f"{seconds:.1f}", f"{_peak_gb():.2f}")
        return found

    world = World(layers, tokens, groups, samples, seed=0)
    coarse = world.profile(range(0, layers, max(1, layers // COARSE)), NOISE)
    known = set(coarse.probes)
    untried = [probe for probe in world.probes() if probe not in known]
    timed("next probes", lambda: next_probes(coarse, untried))
    # The layers of a profile whose probes have taken as many passes as adaptive calibration does.
    step = next(
        step
        for step in range(1, layers + 1)
        if sum(work(coarse, world.probes(range(0, layers, step)))) <= MOST_PASSES * layers
    )
    profile = world.profile(range(0, layers, step), NOISE)
    problem = Problem.of(profile, budget)
    timed("first optimum", lambda: worst_group_optimum(problem.predictor, problem.budget))
    measurer = Clocked(world, batch_size=-(-samples // BATCHES))
    timed(
        f"search of {trials} plans",
        lambda: search(problem, measurer=measurer, settings=SearchSettings(trials)),
        lambda: measurer.seconds,
    )
    console = Console()
    console.print(
        f"{layers} layers, {tokens:,} tokens, {samples:,} samples, {groups} groups, "
        f"{len(profile.probes)} probes",
        highlight=False,
    )
    console.print(table)


def _peak_gb() -> float:
    """Largest memory of the process so far, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


if __name__ == "__main__":
    main()
