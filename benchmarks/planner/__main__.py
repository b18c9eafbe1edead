"""Measures all that docs/planner-results.md says, of any model, and writes its page.

What is measured is kept: a run that was stopped goes on where it was, and one whose code of
plans/, calibrate/ and planner/ or whose built-in weights have changed measures anew what depends
on it. In a folder that --folder names, only a change of planner/ is noticed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console

from benchmarks.planner import (
    comparison,
    other_planners,
    page,
    show_ablations,
    show_comparison,
    show_depth,
    show_economy,
    show_fidelity,
    show_other_planners,
    show_regret,
    world,
)
from benchmarks.planner.comparison import OURS
from benchmarks.planner.duration import forecast, measured_speed
from benchmarks.planner.found import Folders
from benchmarks.planner.other_planners import Pieces
from benchmarks.planner.page import Pictures
from benchmarks.planner.sizes import Sizes, sizes_of
from benchmarks.planner.work import ROOT, Call, NotMeasured, Work, folder_of
from benchmarks.planner.world import ADAPTIVE, FULL
from tpcal.plans.errors import TpcalError
from tpcal.plans.local_paths import EMBEDDED, file_name
from tpcal.plans.plan_records import MERGES
from tpcal.plans.yaml_files import write_atomic

DOCS = ROOT / "docs"
TEMPLATE = Path(__file__).parent / "page_template.md"
STAGES = ("depth", "fidelity", "ablations", "samples", "comparison", "regret", "planners")
ON_OTHERS = ("depth", "comparison", "regret")
"""Stages of a model that is not the embedded one, unless others are asked for."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    "fidelity": (FULL, ADAPTIVE),
    "samples": (FULL, ADAPTIVE),
    "comparison": (ADAPTIVE,),
    "regret": (ADAPTIVE,),
}
"""Large profiles that a stage reads, by their probes."""
OF_ALL_SEEDS = ("comparison", "regret")
"""Stages of all seeds; the others study parts of a search with fewer."""
VERSIONS = ("torch", "transformers", "optuna", "scipy", "numpy")
Parts = dict[str, str]


@click.command()
@click.option(
    "--model",
    default=EMBEDDED,
    show_default=True,
    help="An alias, Hub id, folder, or built-in model, as of 'tpcal calibrate'.",
)
@click.option("--quick", is_flag=True, help="Sizes at which figures mean nothing, for tests.")
@click.option(
    "--stage",
    "chosen",
    type=click.Choice(STAGES),
    multiple=True,
    help="Only these; may be given several times.  [default: all of the embedded model, and "
    "depth, comparison and regret of any other]",
)
@click.option(
    "--budget",
    "budgets",
    type=float,
    multiple=True,
    help="Of the stage planners, only these layer averages; the page shows what was measured.",
)
@click.option("--seed", "seeds", type=int, multiple=True, help="Likewise, only these seeds.")
@click.option(
    "--planner",
    "planners",
    type=click.Choice([OURS, *other_planners.PLANNERS], case_sensitive=False),
    multiple=True,
    help="Likewise, only these planners.",
)
@click.option("--large", is_flag=True, help="The sizes of the embedded model, as fit for a GPU.")
@click.option(
    "--n-seeds",
    type=click.IntRange(min=1),
    help="Seeds of every stage.  [default: 3, and 5 of the embedded model's stages comparison "
    "and regret]",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=28),
    help="Questions that plans answer.  [default: 1400, of other models 420]",
)
@click.option(
    "--device",
    help="Where the model runs, as of 'tpcal calibrate'.  [default: built-in models on the CPU]",
)
@click.option(
    "--merge",
    type=click.Choice(MERGES),
    help="What tpcal's plans do with tokens that leave, as of 'tpcal calibrate'. Published "
    "schedules drop them; other planners do as tpcal does.",
)
@click.option(
    "--only-kept",
    is_flag=True,
    help="Write the page from what the folder has, and measure nothing. Stages that were not "
    "finished are left as they are on the page.",
)
@click.option("--dry-run", is_flag=True, help="Say how long it takes, and measure nothing.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keeps what is measured.  [default: one for the model and this code in "
    "tpcal-out/benchmark]",
)
@click.option(
    "--page",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The page to fill; plots go into a folder beside it.  [default: "
    "docs/planner-results.md, or docs/planner-results-MODEL.md, made if there is none; with "
    "--quick, --n-seeds or --held-out a page in the folder that keeps what is measured]",
)
def main(
    model: str,
    quick: bool,
    chosen: tuple[str, ...],
    budgets: tuple[float, ...],
    seeds: tuple[int, ...],
    planners: tuple[str, ...],
    large: bool,
    n_seeds: int | None,
    held_out: int | None,
    device: str | None,
    merge: str | None,
    only_kept: bool,
    dry_run: bool,
    processes: int,
    folder: Path | None,
    path: Path | None,
) -> None:
    """Measure how good plans are on a model, and on the embedded one also each part of planning.

    The questions are the built-in scenes. The run says first how long it takes.
    """
    sizes, pieces = sizes_of(model, quick=quick, large=large), Pieces(budgets, seeds, planners)
    sizes = replace(sizes, held_out=held_out or sizes.held_out)
    if n_seeds:
        sizes = replace(sizes, seeds=tuple(range(n_seeds)), study_seeds=tuple(range(n_seeds)))
    check_pieces(pieces, sizes)
    chosen = chosen or (STAGES if model == EMBEDDED else ON_OTHERS)
    kept = (folder or folder_of(model, device, merge)).resolve()
    work = Work(kept, processes, Console(), model, device, only_kept, merge)
    work.check_folder()
    world.use(model, device, merge)
    of_other_sizes = kept if quick or n_seeds or held_out else None
    if only_kept:
        measure(work, sizes, chosen, pieces, path or page_of(model, merge, of_other_sizes))
        return
    try:
        said = forecast(chosen, measured_speed(), sizes, processes)
    except TpcalError as error:
        raise click.ClickException(str(error)) from error
    work.console.print(said, highlight=False)
    if not dry_run:
        work.begin()
        measure(work, sizes, chosen, pieces, path or page_of(model, merge, of_other_sizes))


def measure(work: Work, sizes: Sizes, chosen: Sequence[str], pieces: Pieces, path: Path) -> None:
    """Runs the stages one after another; each writes its parts of the page.

    What they need is measured first, and then the searches of all stages, each at the same time,
    to keep every process busy.
    """
    name = file_name(work.model, work.merge)
    folder = "planner" if name == EMBEDDED else f"planner/{name}"
    made = stages(work, sizes, Pictures(path.parent, folder), pieces)
    setting = kept_setting(work, sizes)
    for title, shared in (("calibrations", needed), ("searches", searches)):
        calls = [] if work.only_kept else shared(work, sizes, chosen, pieces)
        if calls:
            work.timed(title, partial(work.together, calls, title))
    for name in chosen:
        try:
            page.write(path, work.timed(name, made[name]))
        except NotMeasured as error:
            work.console.print(f"{name} is left as it is: {error}.", highlight=False)
    page.write(path, {"setting": setting})
    total = sum(work.seconds.values())
    work.console.print(f"{path} is up to date ({total / 60:.1f} min).", highlight=False)


def page_of(model: str, merge: str | None = None, folder: Path | None = None) -> Path:
    """The page of a model in docs/ or another folder, made from the template if there is none."""
    if (model, merge, folder) == (EMBEDDED, None, None):
        return DOCS / "planner-results.md"
    path = (folder or DOCS) / f"planner-results-{file_name(model, merge)}.md"
    if not path.exists():
        text = TEMPLATE.read_text(encoding="utf-8")
        text = text.replace("{model}", model + (", tokens merged" if merge else ""))
        options = f"--model {model}" + (f" --merge {merge}" if merge else "")
        text = text.replace("{options}", options)
        write_atomic(path, text)
    return path


def check_pieces(pieces: Pieces, sizes: Sizes) -> None:
    """Refuses budgets and seeds that the stage planners does not have."""
    for given, known, option in (
        (pieces.budgets, other_planners.BUDGETS, "--budget"),
        (pieces.seeds, sizes.study_seeds, "--seed"),
    ):
        if unknown := set(given) - set(known):
            shown = ", ".join(f"{value:g}" for value in known)
            raise click.UsageError(f"{option} must be one of {shown}; got {min(unknown):g}.")


def folders(work: Work, sizes: Sizes) -> Folders:
    """Where profiles and searches are kept."""
    return Folders(sizes.calibrated, work.folder / "profiles", work.folder / "searches")


def needed(work: Work, sizes: Sizes, chosen: Sequence[str], pieces: Pieces) -> list[Call]:
    """Calibrations that stages use, and answers for which no plan has to be found."""
    where, n = folders(work, sizes), {FULL: sizes.calibrated, ADAPTIVE: sizes.profile}
    asked = dict.fromkeys(
        (kind, seed)
        for name in chosen
        for kind in NEEDS.get(name, ())
        for seed in (sizes.seeds if name in OF_ALL_SEEDS else sizes.study_seeds)
    )
    calls = [(n[kind], seed, where.profiles, kind) for kind, seed in asked]
    if "planners" in chosen:
        calls += other_planners.calibrations(sizes, where, pieces)
    found: list[Call] = [(world.calibrate, call) for call in calls]
    return found + (comparison.without_plans(sizes) if "comparison" in chosen else [])


def stages(
    work: Work, sizes: Sizes, pictures: Pictures, pieces: Pieces
) -> dict[str, Callable[[], Parts]]:
    """Every stage by name; each returns its parts of the page."""
    where = folders(work, sizes)
    return {
        "depth": lambda: show_depth.run(work, sizes, where, pictures),
        "fidelity": lambda: show_fidelity.run(work, sizes, where.profiles, pictures),
        "ablations": lambda: show_ablations.run(work, sizes, where.profiles),
        "samples": lambda: show_economy.run(work, sizes, where, pictures),
        "comparison": lambda: show_comparison.run(work, sizes, where, pictures),
        "regret": lambda: show_regret.run(work, sizes, where),
        "planners": lambda: show_other_planners.run(work, sizes, where, pieces),
    }


def searches(work: Work, sizes: Sizes, chosen: Sequence[str], pieces: Pieces) -> list[Call]:
    """The searches of the stages comparison and planners, the most valuable first."""
    where = folders(work, sizes)
    found = comparison.searches(sizes, where) if "comparison" in chosen else []
    if "planners" in chosen:
        found += other_planners.searches(work, sizes, where, pieces)
    return found


def kept_setting(work: Work, sizes: Sizes) -> str:
    """What the figures were made with; kept beside them, because a page may be made elsewhere."""
    file = work.folder / "setting.md"
    if not work.only_kept:
        file.write_text(setting(sizes, work.n_processes), encoding="utf-8")
    if not file.exists():
        raise click.ClickException(f"{work.folder} must be the folder of a run; got none.")
    return file.read_text(encoding="utf-8")


def setting(sizes: Sizes, n_processes: int) -> str:
    """What the figures were made with."""
    libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    seeds = ", ".join(map(str, sizes.seeds))
    if sizes.study_seeds != sizes.seeds:
        studies = ", ".join(map(str, sizes.study_seeds))
        seeds += f" ({studies} in all but the comparison and the regret)"
    shape = f"{world.n_layers()} layers, {world.n_tokens()} visual tokens"
    device = str(world.model().model.device).upper()
    rows = [
        ("model", f"{world.measured.name}: {shape}, 14 groups of questions"),
        ("tokens that leave", "dropped" if world.measured.merge is None else "merged, by tpcal"),
        ("samples of a profile", f"{sizes.profile}; probes chosen by default"),
        ("search", f"{sizes.trials} plans on the profile's samples"),
        ("seeds of both", seeds),
        ("finals", "the best 12, ever fewer of them, on up to twice as many others"),
        ("judged plans", f"{sizes.plans} per budget on {sizes.plan_samples} other samples"),
        ("questions answered", f"{sizes.held_out} of the test split"),
        ("machine", f"{platform.machine()}, {device}, processes of one thread: {n_processes}"),
        ("versions", f"Python {platform.python_version()}, {libraries}"),
    ]
    return page.table(["what", "which"], rows, n_left=2)


if __name__ == "__main__":
    main()
