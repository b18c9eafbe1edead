"""Measures all that docs/planner-results.md says, and writes that page.

What is measured is kept: a run that was stopped goes on where it was, and one whose code of
plans/, calibrate/ and planner/ has changed measures anew what depends on it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from benchmarks.planner import (
    other_planners,
    page,
    show_ablations,
    show_comparison,
    show_economy,
    show_fidelity,
    show_other_planners,
    world,
)
from benchmarks.planner.found import Folders
from benchmarks.planner.other_planners import Pieces
from benchmarks.planner.sizes import LARGE, QUICK, Sizes
from benchmarks.planner.work import ROOT, Work, code
from benchmarks.planner.world import ADAPTIVE, FULL

PAGE = ROOT / "docs" / "planner-results.md"
STAGES = ("fidelity", "ablations", "samples", "comparison", "planners")
VERSIONS = ("torch", "transformers", "optuna", "scipy", "numpy")
Parts = dict[str, str]


@click.command()
@click.option("--quick", is_flag=True, help="Sizes at which figures mean nothing, for tests.")
@click.option(
    "--stage",
    "chosen",
    type=click.Choice(STAGES),
    multiple=True,
    help="Only these; may be given several times.  [default: all]",
)
@click.option(
    "--budget",
    "budgets",
    type=float,
    multiple=True,
    help="Of the stage planners, only these layer averages; the page shows what was measured.",
)
@click.option("--seed", "seeds", type=int, multiple=True, help="Likewise, only these seeds.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps what is measured.  [default: one for this code in tpcal-out/benchmark]",
)
@click.option(
    "--page",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=PAGE,
    help="The page to fill; plots go into a folder beside it.  [default: docs/planner-results.md]",
)
def main(
    quick: bool,
    chosen: tuple[str, ...],
    budgets: tuple[float, ...],
    seeds: tuple[int, ...],
    processes: int,
    folder: Path | None,
    path: Path,
) -> None:
    """Measure predictions, parts of a search, profiles and plans on the embedded model."""
    sizes = QUICK if quick else LARGE
    folder = folder or ROOT / "tpcal-out" / "benchmark" / code("plans", "calibrate")
    work = Work(folder.resolve(), processes, Console())
    pieces = Pieces(budgets, seeds)
    check_pieces(pieces, sizes)
    made = stages(work, sizes, path.parent / "planner", pieces)
    if set(chosen or STAGES) - {"ablations", "planners"}:  # which have smaller profiles
        work.timed("calibration", lambda: calibrated(work, sizes))
    for name in chosen or STAGES:
        page.write(path, work.timed(name, made[name]))
    page.write(path, {"setting": setting(sizes, processes)})
    total = sum(work.seconds.values())
    work.console.print(f"{path} is up to date ({total / 60:.1f} min).", highlight=False)


def check_pieces(pieces: Pieces, sizes: Sizes) -> None:
    """Refuses budgets and seeds that the stage planners does not have."""
    for given, known, option in (
        (pieces.budgets, other_planners.BUDGETS, "--budget"),
        (pieces.seeds, sizes.seeds, "--seed"),
    ):
        if unknown := set(given) - set(known):
            shown = ", ".join(f"{value:g}" for value in known)
            raise click.UsageError(f"{option} must be one of {shown}; got {min(unknown):g}.")


def folders(work: Work, sizes: Sizes) -> Folders:
    """Where profiles and searches are kept."""
    return Folders(sizes.calibrated, work.folder / "profiles", work.folder / "searches")


def calibrated(work: Work, sizes: Sizes) -> list[None]:
    """The calibrations that all stages use."""
    where = folders(work, sizes).profiles
    calls = [
        (n, seed, where, probes)
        for n, probes in ((sizes.calibrated, FULL), (sizes.profile, ADAPTIVE))
        for seed in sizes.seeds
    ]
    return work.each(world.calibrate, calls, "calibrations")


def stages(
    work: Work, sizes: Sizes, pictures: Path, pieces: Pieces
) -> dict[str, Callable[[], Parts]]:
    """Every stage by name; each returns its parts of the page."""
    where = folders(work, sizes)
    return {
        "fidelity": lambda: show_fidelity.run(work, sizes, where.profiles, pictures),
        "ablations": lambda: show_ablations.run(work, sizes, where.profiles),
        "samples": lambda: show_economy.run(work, sizes, where, pictures),
        "comparison": lambda: show_comparison.run(work, sizes, where, pictures),
        "planners": lambda: show_other_planners.run(work, sizes, where, pieces),
    }


def setting(sizes: Sizes, n_processes: int) -> str:
    """What the figures were made with."""
    libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    seeds = ", ".join(map(str, sizes.seeds))
    rows = [
        ("model", "the embedded VLM: 8 layers, 144 visual tokens, 14 groups of questions"),
        ("samples of a profile", f"{sizes.profile}, seeds {seeds}; probes chosen by default"),
        ("search", f"{sizes.trials} plans on the profile's samples, seeds {seeds}"),
        ("finals", "the best 8 on twice as many others"),
        ("judged plans", f"{sizes.plans} per budget on {sizes.plan_samples} other samples"),
        ("questions answered", f"{sizes.held_out} of the test split"),
        ("machine", f"{platform.machine()}, CPU, processes of one thread: {n_processes}"),
        ("versions", f"Python {platform.python_version()}, {libraries}"),
    ]
    return page.table(["what", "which"], rows, n_left=2)


if __name__ == "__main__":
    main()
