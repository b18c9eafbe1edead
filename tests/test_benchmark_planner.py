"""The planner's benchmark runs at small sizes, and counts, tests and fills its page as it should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.planner import page, plots, quality
from benchmarks.planner.comparison import Answered, Comparison, patches, single
from benchmarks.planner.intervals import (
    Interval,
    overall_difference,
    p_paired,
    worst_difference,
)
from benchmarks.planner.show_comparison import METHODS
from benchmarks.planner.sizes import BUDGETS
from benchmarks.planner.work import Work, code
from tpcal.plans.budget_projection import spent
from tpcal.plans.errors import BudgetError

ROOT = Path(__file__).resolve().parents[1]


def test_a_part_of_the_page_is_made_anew_and_the_rest_stays() -> None:
    old = "# A\n<!-- a: by b -->\nold\n<!-- end -->\nkept\n<!-- b: by b -->\n<!-- end -->\n"
    new = page.filled(old, {"a": "one\n", "b": r"\2" + "\n"})
    assert (
        new
        == "# A\n<!-- a: by b -->\none\n<!-- end -->\nkept\n<!-- b: by b -->\n\\2\n<!-- end -->\n"
    )
    assert page.filled(new, {"a": "one\n"}) == new
    with pytest.raises(ValueError, match="a part called c"):
        page.filled(old, {"c": ""})


def test_numbers_stand_on_the_right_of_a_table() -> None:
    made = page.table(["name", "n", "m"], [["a", "1", "2"]])
    assert made == "| name | n | m |\n|---|---:|---:|\n| a | 1 | 2 |\n"


def test_differences_are_of_all_questions_and_of_the_worst_groups() -> None:
    groups = np.array([0, 0, 1, 1])
    one, other = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0, 1.0])
    overall = overall_difference(one, other, groups, 200)
    assert overall.value == pytest.approx(0.25)
    assert overall.low <= 0.25 <= overall.high
    assert worst_difference(one, other, groups, 200).value == pytest.approx(0.5 - 0.0)


def test_a_verdict_says_how_much_worse_and_never_by_less_than_nothing() -> None:
    assert Interval(-0.003, -0.012, 0.006).verdict() == "worse by 0.003 [-0.006, 0.012]"
    assert Interval(0.034, 0.023, 0.045).verdict() == "better by 0.034 [0.023, 0.045]"
    assert Interval(0.0002, -0.047, 0.07).verdict() == "equal, 0.000 [-0.047, 0.070]"


def test_equal_answers_differ_by_nothing_for_certain() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0])
    same = overall_difference(right, right, np.array([0, 0, 1, 1]), 50)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert p_paired(right, right) == 1.0


@pytest.mark.parametrize(
    ("target", "size"), [(0.1, (3, 4)), (0.22, (5, 6)), (0.5, (8, 9)), (1.0, (12, 12))]
)
def test_a_smaller_image_is_the_largest_within_the_budget(
    target: float, size: tuple[int, int]
) -> None:
    assert patches(target, 144) == size


def test_one_cut_meets_the_budget_where_its_selector_can() -> None:
    early, late = single("grid", 0.22, 0, 144, 8), single("sparsevlm", 0.22, 0, 144, 8)
    assert [early[0].layer, late[0].layer] == [0, 1]
    assert spent(early, 144, 8) == 31 * 8  # 31.68 tokens in every layer
    assert spent(late, 144, 8) == 144 + 15 * 7  # 253.44 token-layers, 144 of them before the cut
    with pytest.raises(BudgetError, match="0.1311"):
        single("sparsevlm", 0.1, 0, 144, 8)


def _doubled(x: int, log: Path) -> int:
    with log.open("a") as file:
        file.write(f"{x}\n")
    return 2 * x


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    from rich.console import Console

    log = tmp_path / "log"
    work = Work(tmp_path / "kept", 1, Console(quiet=True))
    assert work.each(_doubled, [(1, log), (2, log)], "numbers") == [2, 4]
    assert work.each(_doubled, [(2, log), (3, log)], "numbers") == [4, 6]
    assert [work.knows(_doubled, (x, log)) for x in (3, 4)] == [True, False]
    assert log.read_text().split() == ["1", "2", "3"]


def test_comments_do_not_change_what_code_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.planner.work.ROOT", tmp_path)
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "a.py"
    hashes = []
    for text in ("x = 1\n", "x = 1  # one\n", "x = 2\n"):
        file.write_text(text)
        hashes.append(code("part"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_plot_is_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        with plots.figure(tmp_path / name, 1) as panels:
            plots.bands(panels[0], [1, 2], {"x": [[1, 2], [2, 3]]})
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_names_beside_a_panel_keep_their_order_and_do_not_overlap(tmp_path: Path) -> None:
    with plots.figure(tmp_path / "a.svg", 1) as panels:
        plots.named(panels[0], {n: (y, {"color": "red"}) for n, y in _ENDS.items()})
        heights = {text.get_text(): text.get_position()[1] for text in panels[0].texts}
    assert sorted(heights, key=heights.__getitem__) == ["low", "b", "a", "c", "top"]
    assert heights["low"] == pytest.approx(0.1)  # alone, where its line ends
    assert heights["a"] == pytest.approx(0.5)  # of three in one place the middle one stays
    assert np.diff(sorted(heights.values())).min() >= plots.GAP - 1e-9
    assert heights["top"] == pytest.approx(1.0)


_ENDS = {"a": 0.5, "b": 0.499, "c": 0.501, "low": 0.1, "top": 1.0}


def test_the_picture_of_readme_names_every_method_and_draws_what_was_answered(
    tmp_path: Path,
) -> None:
    right = np.array([[True, True, True, False]])
    answered = tuple(
        Answered(method, budget, budget, right, right) for method in METHODS for budget in BUDGETS
    )
    found = Comparison(("a", "b"), np.array([0, 0, 1, 1]), right[0] | True, answered, {}, {})
    assert found.by_group(right).tolist() == [1.0, 0.5]
    for name in ("a.svg", "b.svg"):
        quality.draw(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {method} -->" in texts for method in (*METHODS, "unpruned"))


@pytest.mark.slow
def test_the_whole_benchmark_fills_its_page(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "planner-results.md", tmp_path)
    written = tmp_path / "planner-results.md"
    command = [sys.executable, "-m", "benchmarks.planner", "--quick", "--processes", "1"]
    command += ["--folder", tmp_path / "kept", "--page", written]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = written.read_text()
    parts = re.findall(r"<!-- ([\w-]+): [^>]*-->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    assert len(parts) == 16
    assert all(made for _, made in parts)
    pictures = re.findall(r"\(planner/(\w+)\.svg\)", text)
    assert {f"{name}.svg" for name in pictures} == {
        path.name for path in (tmp_path / "planner").iterdir()
    }
