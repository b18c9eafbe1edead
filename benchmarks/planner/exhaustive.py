"""The best plan that a large effort finds at each budget; the regret of a search is known by it.

The plans are files in best_plans/, so that `python -m benchmarks.planner` needs no such effort.
This command finds them anew, and continues where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import click
import numpy as np
from joblib import Memory
from numpy.typing import NDArray
from rich.console import Console

import tpcal
from benchmarks.planner import draws, world
from benchmarks.planner.comparison import searches
from benchmarks.planner.draws import NEIGHBOUR, OPTIMUM, RANDOM
from benchmarks.planner.found import Folders
from benchmarks.planner.sizes import BUDGETS, ELSEWHERE, Sizes, sizes_of
from benchmarks.planner.work import Work, folder_of
from tpcal.planner.prediction.objective import Objective
from tpcal.planner.problem import Problem
from tpcal.planner.search.proposals import steps_from
from tpcal.plans.cost import layer_average_keep
from tpcal.plans.local_paths import EMBEDDED, file_name
from tpcal.plans.plan_file import save_plan
from tpcal.plans.plan_records import MERGES, Cuts, Plan, ReachedBudget

BEST = Path(__file__).parent / "best_plans"
TURNS = (OPTIMUM, NEIGHBOUR, OPTIMUM, NEIGHBOUR, RANDOM)
"""What plans are drawn; few by chance alone, which are hardly ever the best."""
SEED = 3 * ELSEWHERE
"""Of samples that no profile, no search and no judge draws."""


@dataclass(frozen=True)
class Effort:
    """How many plans are measured, and on how many samples."""

    drawn: int
    """Plans that are drawn at first."""
    rungs: tuple[tuple[int, int], ...]
    """How many samples measure the plans, and how many of the plans go on to the next rung."""
    rounds: int
    """How often all steps from the best plans are tried."""
    parents: int
    """Plans from which they are."""
    finalists: int
    final_samples: int
    """Samples that choose among the finalists; all others have not seen them."""


LARGE = Effort(
    drawn=1500,
    rungs=((28, 300), (112, 80), (364, 24)),
    rounds=2,
    parents=8,
    finalists=8,
    final_samples=1400,
)
DEEP = Effort(
    drawn=300,
    rungs=((28, 60), (84, 16), (168, 8)),
    rounds=2,
    parents=4,
    finalists=4,
    final_samples=420,
)
"""For models of which a question costs a second or less on a CPU."""
QUICK = Effort(
    drawn=14, rungs=((14, 4), (28, 2)), rounds=1, parents=1, finalists=2, final_samples=14
)


@dataclass(frozen=True)
class Best:
    """The best plan of one budget."""

    cuts: Cuts
    objective: float
    """What it loses on the final samples, in nats."""
    n_plans: int
    """Plans that were measured."""


@cache
def _groups(start: int, end: int) -> NDArray[np.str_]:
    """[end - start] the group of each sample of a part."""
    drawn = world.samples(world.CALIBRATION, end, SEED).part(start, end)
    return np.array(drawn.sample_groups)


@dataclass
class Measuring:
    """Losses of plans on the samples of `SEED`, kept on disk."""

    memory: Memory
    seen: set[Cuts]

    def nats(self, cuts: Cuts, start: int, end: int) -> NDArray[np.float32]:
        """[end - start] losses on a part of the samples."""
        self.seen.add(cuts)
        kept = self.memory.cache(world.losses)
        nats: NDArray[np.float32] = kept(cuts, world.CALIBRATION, end - start, SEED, start)[0]
        return nats

    def objective(self, cuts: Cuts, parts: Iterable[tuple[int, int]]) -> float:
        """What a search would minimise, on all samples of the parts, which begin at one place."""
        (start, _), *_ = parts = list(parts)
        nats = np.concatenate([self.nats(cuts, *part) for part in parts])
        names = _groups(start, parts[-1][1])
        groups = tuple(dict.fromkeys(names.tolist()))
        means = [nats[names == group].mean() for group in groups]
        return float(Objective().values(np.array(means), groups))

    def best(self, plans: Iterable[Cuts], effort: Effort) -> list[Cuts]:
        """The plans that are left after all rungs, the best one first."""
        left, parts, start = list(dict.fromkeys(plans)), [], 0
        for end, most in effort.rungs:
            parts.append((start, end))
            left = sorted(left, key=partial(self.objective, parts=tuple(parts)))[:most]
            start = end
        return left


def best(
    target: float, effort: Effort, sizes: Sizes, given: Sequence[Cuts], folders: Folders
) -> Best:
    """The best plan that the effort finds.

    Args:
        target: Layer average of keep.
        effort: How many plans are measured.
        sizes: Of the profile that draws the plans.
        given: Plans of this budget to begin with, beside those that are drawn.
        folders: Where profiles and measured losses are kept.
    """
    profile = world.calibrated(sizes.profile, 0, folders.profiles, world.ADAPTIVE)
    problem = Problem.of(profile, target)
    measuring = Measuring(Memory(folders.searches / "exhaustive", verbose=0), set())
    drawn = draws.plans(target, effort.drawn, sizes.profile, folders.profiles, TURNS)
    # Step 1: all plans run on few samples, and ever fewer of them on more.
    left = measuring.best([*given, *(plan.cuts for plan in drawn)], effort)
    # Step 2: every step from the best plans is measured likewise, several times. Plans that are
    # left compete again; what they lost on the same samples is known.
    for _ in range(effort.rounds):
        steps = [plan for parent in left[: effort.parents] for plan in steps_from(problem, parent)]
        left = measuring.best([*left, *steps], effort)
    # Step 3: samples that chose none of these plans choose among the best.
    start = effort.rungs[-1][0]
    final = [(start, start + effort.final_samples)]
    scores = {plan: measuring.objective(plan, final) for plan in left[: effort.finalists]}
    chosen = min(scores, key=lambda plan: scores[plan])
    return Best(chosen, scores[chosen], len(measuring.seen))


def path_of(model: str, merge: str | None, target: float) -> Path:
    """Where the best plan of a budget is kept."""
    return BEST / f"{file_name(model, merge)}-{target:.2f}.yaml"


def save(work: Work, target: float, found: Best, effort: Effort, folder: Path) -> Path:
    """Writes the plan with how it was found into a folder, and returns its file."""
    n_tokens, n_layers = world.n_tokens(), world.n_layers()
    plan = Plan(found.cuts, scope="image", merge=work.merge)
    merge = f" --merge {work.merge}" if work.merge else ""
    reached = layer_average_keep(plan.schedule(n_tokens, n_layers), n_tokens)
    provenance = {
        "tpcal": tpcal.__version__,
        "command": f"python -m benchmarks.planner.exhaustive --model {work.model}{merge} "
        f"--budget {target:g}",
        "plans": found.n_plans,
        "samples": effort.final_samples,
        "objective": round(found.objective, 6),
    }
    plan = replace(plan, budget=ReachedBudget(target, round(reached, 6)), provenance=provenance)
    path = folder / path_of(work.model, work.merge, target).name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_plan(plan, path)
    return path


@click.command()
@click.option("--model", default=EMBEDDED, show_default=True, help="As of 'tpcal calibrate'.")
@click.option("--budget", "budgets", type=float, multiple=True, help="Only these layer averages.")
@click.option("--n-seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Sizes at which plans mean nothing, for tests.")
@click.option("--large", is_flag=True, help="The sizes of the embedded model, as fit for a GPU.")
@click.option("--device", help="Where the model runs, as of 'tpcal calibrate'.")
@click.option("--merge", type=click.Choice(MERGES), help="As of 'tpcal calibrate'.")
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the best plans.  [default: benchmarks/planner/best_plans, or with --quick "
    "best_plans in the folder that keeps what is measured]",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="That of a run of 'python -m benchmarks.planner', whose plans are the first to be "
    "measured; what is not there yet is searched.",
)
def main(
    model: str,
    budgets: tuple[float, ...],
    n_seeds: int,
    quick: bool,
    large: bool,
    device: str | None,
    merge: str | None,
    processes: int,
    into: Path | None,
    folder: Path | None,
) -> None:
    """Find the best plan of each budget with a large effort, and keep it in best_plans/."""
    sizes = replace(sizes_of(model, quick=quick, large=large), seeds=tuple(range(n_seeds)))
    effort = QUICK if quick else LARGE if large or model == EMBEDDED else DEEP
    kept = (folder or folder_of(model, device, merge)).resolve()
    work = Work(kept, processes, Console(), model, device, merge=merge)
    work.check_folder()
    work.begin()
    world.use(model, device, merge)
    where = Folders(sizes.calibrated, work.folder / "profiles", work.folder / "searches")
    targets, into = budgets or BUDGETS, into or (kept / BEST.name if quick else BEST)
    plans = work.together(searches(sizes, where, targets), "plans by budget")
    given = [tuple(cuts for own, cuts, _ in plans if own.target == target) for target in targets]
    asked = [(t, effort, sizes, own, where) for t, own in zip(targets, given, strict=True)]
    for target, found in zip(targets, work.each(best, asked, "best plans"), strict=True):
        path = save(work, target, found, effort, into)
        work.console.print(
            f"{target:.2f}: {found.objective:.4f} nats, of {found.n_plans} plans: {path}",
            highlight=False,
        )


if __name__ == "__main__":
    # Other processes look functions up by the name of this module, which is not "__main__" there.
    from benchmarks.planner import exhaustive

    exhaustive.main()
