"""The regret of searches: what a large effort finds, and how much more the searches' plans lose."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from joblib import Memory
from rich.console import Console

from benchmarks.planner import exhaustive, show_regret, world
from benchmarks.planner.__main__ import TEMPLATE, main
from benchmarks.planner.exhaustive import Effort, Measuring, path_of
from benchmarks.planner.found import Asked, Folders
from benchmarks.planner.sizes import QUICK
from benchmarks.planner.work import Work
from tpcal.plans.local_paths import EMBEDDED
from tpcal.plans.plan_file import load_plan, save_plan
from tpcal.plans.plan_records import Cut, Cuts, Plan

EFFORT = Effort(
    drawn=0, rungs=((14, 4), (28, 2)), rounds=0, parents=1, finalists=2, final_samples=14
)


def _plans(n: int) -> list[Cuts]:
    return [(Cut(layer, 0.5, "grid"),) for layer in range(n)]


def _measuring(lost: Callable[[Cuts, np.ndarray], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures plans by a formula: nats of a plan on numbered samples."""

    def nats(self: Measuring, cuts: Cuts, start: int, end: int) -> Any:
        self.seen.add(cuts)
        return np.broadcast_to(lost(cuts, np.arange(start, end)), end - start)

    monkeypatch.setattr(Measuring, "nats", nats)
    return Measuring(Memory(None), set())


def test_the_best_plans_go_on_and_are_measured_on_more_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Plan 5 looks best on the first samples and is worst on all later ones.
    def lost(cuts: Cuts, at: np.ndarray) -> Any:
        layer = cuts[0].layer
        return np.where(at < 14, 0.0, 9.0) if layer == 5 else abs(layer - 3.2)

    measuring = _measuring(lost, monkeypatch)
    plans = _plans(8)
    assert measuring.best([*plans, plans[0]], EFFORT) == [plans[3], plans[4]]
    assert measuring.seen == set(plans)


def test_a_score_is_of_all_parts_and_gives_every_group_the_same_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measuring = _measuring(lambda _, at: at.astype(float), monkeypatch)
    (plan,) = _plans(1)
    # Group g has the samples g and g + 14; the worst of 14 groups has a quarter of the weight.
    means = np.arange(14) + 7
    assert measuring.objective(plan, [(0, 14), (14, 28)]) == pytest.approx(
        0.75 * means.mean() + 0.25 * means.max()
    )
    assert measuring.objective(plan, [(14, 28)]) == pytest.approx(
        0.75 * (means + 7).mean() + 0.25 * (means + 7).max()
    )


def _found(*result: Any) -> Any:
    """The result of a search."""
    return result


@pytest.fixture
def regret_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The row of the table for two seeds, of which the second plan answers as the best does."""
    good, bad = _plans(2)
    monkeypatch.setattr(exhaustive, "BEST", tmp_path)
    right = [str(sample.answer) for sample in world.samples(world.TEST, QUICK.held_out, 0)]

    def row(wrong: int, nats: float) -> str:
        first, second = (Asked(QUICK.profile, seed, 0.22, QUICK.trials) for seed in (0, 1))
        texts = [*[""] * wrong, *right[wrong:]]
        calls = [(_found, (first, bad, texts)), (_found, (second, good, right))]
        monkeypatch.setattr(show_regret, "searches", lambda *_: calls)
        monkeypatch.setattr(world, "answers", lambda cuts, n, merge: right)

        def losses(cuts: Cuts, split: str, n: int, seed: int) -> Any:
            return np.full(n, 0.1 if cuts == good else 0.1 + nats), np.zeros(n, dtype=bool)

        monkeypatch.setattr(world, "losses", losses)
        work = Work(tmp_path / f"{wrong}-{nats}", 1, Console(quiet=True))
        save_plan(Plan(good), path_of(EMBEDDED, None, 0.22))
        sizes = replace(QUICK, seeds=(0, 1))
        folders = Folders(0, tmp_path, tmp_path)
        return show_regret.run(work, sizes, folders)["regret"].splitlines()[2]

    return row


def test_regret_is_the_mean_of_the_seeds_beside_the_best_plan(
    regret_of: Callable[..., str],
) -> None:
    # 7 of 28 answers of one of two seeds are wrong: 12.5 points; 0.2 nats of one: 0.1.
    cells = [cell.strip() for cell in regret_of(7, 0.2).strip("|").split("|")]
    assert cells[:3] == ["0.22", "100.0%", "87.5% (75.0% to 100.0%)"]
    assert cells[3].startswith("12.5 [")
    assert cells[5:] == ["0.100", "0.200 (0.100 to 0.300)", "0.100 [0.100, 0.100]"]


def test_plans_that_answer_as_the_best_does_have_no_regret(regret_of: Callable[..., str]) -> None:
    cells = [cell.strip() for cell in regret_of(0, 0.0).strip("|").split("|")]
    assert cells[3:5] == ["0.0 [0.0, 0.0]", "1"]
    assert cells[7] == "0.000 [0.000, 0.000]"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command_runs_functions_that_other_processes_find(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Functions of "__main__" exist in no other process.
    called = []
    monkeypatch.setattr(exhaustive, "main", lambda: called.append(exhaustive.best.__module__))
    runpy.run_module("benchmarks.planner.exhaustive", run_name="__main__")
    assert called == ["benchmarks.planner.exhaustive"]


@pytest.mark.slow
def test_the_command_keeps_a_plan_that_the_benchmark_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhaustive, "BEST", tmp_path / "best")
    shared = ["--quick", "--n-seeds", "1", "--processes", "1", "--folder", str(tmp_path / "kept")]
    done = CliRunner().invoke(
        exhaustive.main,
        [*shared, "--budget", "0.22", "--into", str(tmp_path / "best")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    plan = load_plan(tmp_path / "best" / "embedded-0.22.yaml")
    assert plan.budget is not None
    assert plan.budget.reached <= 0.22
    assert plan.provenance["plans"] > exhaustive.QUICK.drawn
    page = tmp_path / "page.md"
    shutil.copy(TEMPLATE, page)
    done = CliRunner().invoke(
        main, [*shared, "--stage", "regret", "--page", str(page)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "| 0.22 |" in page.read_text()
