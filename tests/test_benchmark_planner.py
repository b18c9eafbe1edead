"""The planner's benchmark runs at small sizes, and counts, tests and fills its page as it should."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from transformers import GenerationConfig

from benchmarks.planner import other_planners, page, plots, quality, world
from benchmarks.planner.__main__ import TEMPLATE, main, page_of
from benchmarks.planner.comparison import OURS, Answered, Comparison, patches, single
from benchmarks.planner.depth import Depth
from benchmarks.planner.duration import Speed, comparison_s, depth_s
from benchmarks.planner.fidelity import Measured
from benchmarks.planner.intervals import (
    Interval,
    overall_difference,
    p_paired,
    worst_difference,
)
from benchmarks.planner.objectives import RULES, judged, tail
from benchmarks.planner.published import SCHEDULES, as_printed, placed
from benchmarks.planner.show_comparison import METHODS
from benchmarks.planner.show_depth import SHOWN, assumptions, draw
from benchmarks.planner.sizes import BUDGETS, DEEP, LARGE, sizes_of
from benchmarks.planner.work import NotMeasured, Work, code
from tools.embedded import model as tiny_models
from tpcal.plans.budget_projection import spent
from tpcal.plans.errors import BudgetError
from tpcal.plans.local_paths import EMBEDDED
from tpcal.plans.plan_file import load_preset

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
    assert worst_difference(one[None], other[None], groups, 200).value == pytest.approx(0.5 - 0.0)
    # Each of two plans ruins another group: no mean of both shows that.
    two = np.stack([np.where(groups == g, 0.0, 1.0) for g in np.unique(groups)[:2]])
    assert worst_difference(two, other[None], groups, 200).value == pytest.approx(0.0)


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


def _noted(x: int, folder: Path) -> int:
    with (folder / "log").open("a") as file:
        file.write(f"{x}\n")
    return x + 1


def test_what_was_measured_is_read_where_its_folder_was_copied_to(tmp_path: Path) -> None:
    from rich.console import Console

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    made = Work(first, 1, Console(quiet=True)).together([(_noted, (1, first))], "numbers")
    shutil.copytree(first, second)
    read = Work(second, 1, Console(quiet=True), only_kept=True)
    assert read.each(_noted, [(1, second)], "numbers") == made == [2]
    with pytest.raises(NotMeasured, match="numbers: 1 of 2 are not measured"):
        read.each(_noted, [(1, second), (2, second)], "numbers")
    assert (second / "log").read_text().split() == ["1"]


def test_a_folder_keeps_the_measurements_of_one_model_with_one_merging(tmp_path: Path) -> None:
    from rich.console import Console

    work = Work(tmp_path / "kept", 1, Console(quiet=True))
    work.check_folder()
    work.begin()
    work.check_folder()
    for other in ({"model": "smol"}, {"merge": "mean"}, {"device": "cuda"}):
        with pytest.raises(click.UsageError, match='--folder must be of .*; got one of .*"embedd'):
            replace(work, **other).check_folder()


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
    assert found.by_group(right).tolist() == [[1.0, 0.5]]
    assert found.worst(right) == 0.5
    for name in ("a.svg", "b.svg"):
        quality.draw(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {method} -->" in texts for method in (*METHODS, "unpruned"))


def test_schedules_stay_at_printed_layers_where_a_decoder_is_as_deep() -> None:
    assert [as_printed(preset, 30) for preset in SCHEDULES.values()] == [True] * len(SCHEDULES)
    assert [cut.layer for cut in placed("pyramiddrop", 30).cuts] == [8, 16, 24]
    assert placed("pyramiddrop", 8) == load_preset("pyramiddrop", 8)
    assert not as_printed("todre-25", 29)  # it drops all before layer 29
    assert placed("vtw", 30).model is not None
    assert placed("vtw", 30).model.n_layers == 30


def _falling() -> Depth:
    """30 layers: half of the groups read the image up to layer 14, the others up to layer 22."""
    early = {layer: 1.0 if layer < 15 else 0.0 for layer in range(30)}
    late = {layer: 2.0 if layer < 23 else 0.005 for layer in range(30)}
    whole = {layer: (early[layer] + late[layer]) / 2 for layer in range(30)}
    return Depth(whole, {"early": early, "late": late})


def test_what_methods_assume_stands_beside_what_dropping_all_there_loses() -> None:
    found = _falling()
    assert (found.worst(0), found.worst(29), found.safe) == (2.0, 0.005, 23)
    made = assumptions(found, 30)
    rows = dict(line.strip("| ").split(" | ", 1) for line in made.splitlines() if " | " in line)
    assert rows["VTW"] == "all, none from 16 on | 1.00 | 2.00"
    assert rows["BTP"] == "8% from layer 14 on, none from 22 on | 1.00 | 2.00"
    assert rows["FastV"] == "50% from layer 2 on | – | –"
    assert rows["ToDRE"].startswith("25% from layer 0 on, none from 29 on if the layer hardly")
    assert "From layer 23 on dropping all loses less than 0.01 nats in every group." in made


def test_the_depth_profile_is_drawn_with_a_bar_for_each_method(tmp_path: Path) -> None:
    draw(_falling(), 30, tmp_path / "depth.svg")
    text = (tmp_path / "depth.svg").read_text()
    assert all(f"<!-- {name} -->" in text for name in (*SHOWN, "decoder layer"))


def _measured(nats: list[list[float]], changed: list[list[float]], tokens: list[int]) -> Measured:
    """Plans with equal losses for the six samples of each of four groups."""
    return Measured(
        groups=("a", "b", "c", "d"),
        sample_group=np.repeat(np.arange(4), 6),
        budget=np.full(len(nats), 0.22),
        cuts=((),) * len(nats),
        nats=np.repeat(np.array(nats, np.float32), 6, axis=1),
        changed=np.repeat(np.array(changed), 6, axis=1) > 0,
        answer_tokens=np.repeat(np.array(tokens), 6),
        losses=np.array(nats),
    )


def test_every_rule_chooses_the_plan_that_is_best_by_it() -> None:
    plans = _measured(
        nats=[
            [0.0, 0.0, 0.1, 0.5],  # the best mean
            [0.2, 0.2, 0.2, 0.2],  # the best worst group
            [0.0, 0.02, 0.3, 0.3],  # the best mix of both
            [0.9, 0.9, 0.0, 0.9],  # changes no answer
        ],
        changed=[[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]],
        tokens=[1, 20, 1, 1],
    )
    found = judged(plans, 0.22, n_splits=3)
    assert tuple(found) == RULES
    mean, mixed, worst, quarter, per_answer, changed = (values[0] for values in found.values())
    np.testing.assert_allclose(mean, [0.15, 0.5, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(mixed, [0.155, 0.3, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(worst, [0.2, 0.2, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(quarter, worst)  # of four groups it is one
    np.testing.assert_allclose(changed, [0.675, 0.9, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(per_answer, mean)  # the other one loses in the long answers


def test_samples_that_choose_do_not_judge() -> None:
    rng = np.random.default_rng(0)
    plans = _measured([[0.0] * 4] * 40, [[0] * 4] * 40, [1] * 4)
    noise = rng.uniform(size=(40, 24)).astype(np.float32)
    found = judged(replace(plans, nats=noise), 0.22, n_splits=100)
    chosen = found[RULES[0]][:, 0].mean()
    # By chance alone no plan is better than another: where samples judge their own choice, the
    # plan of the smallest mean seems to be.
    assert chosen > noise.mean() - 0.03 > noise.mean(axis=1).min() + 0.05


def test_the_tail_is_the_mean_of_the_groups_that_lose_most() -> None:
    assert tail(np.array([0.1, 0.2, 0.3, 0.8, 0.0, 0.4, 0.0, 0.0])) == pytest.approx(0.6)


def test_time_is_counted_in_passes_and_answers() -> None:
    one = replace(DEEP, seeds=(0,), study_seeds=(0,), profile=14, trials=10, held_out=100)
    assert depth_s(Speed(2.0, 9.0, 0.0), one, 30) == 2.0 * 14
    assert depth_s(Speed(2.0, 9.0, 0.1), one, 30) == pytest.approx(2.0 * 14 * (1 + 0.1 * 15.5))
    # 14 * 21 passes calibrate. Each of four budgets runs 10 plans on 14 samples, 12, 6 and 3 on
    # thirds of 28, and records 42; the budgets together are 1.17.
    passes = 14 * 21 + (10 * 14 + 7 * 28) * 1.17 + 4 * 42
    assert comparison_s(Speed(1.0, 0.0, 0.1), one) == pytest.approx(passes)
    assert comparison_s(Speed(0.0, 1.0, 0.1), one) > 4 * 100


def test_deep_models_are_measured_on_fewer_samples_and_have_pages_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sizes_of(EMBEDDED) == LARGE
    assert sizes_of("smol").held_out < LARGE.held_out
    assert sizes_of("smol", large=True) == LARGE
    assert sizes_of("smol", quick=True).held_out < sizes_of("smol").held_out
    monkeypatch.setattr("benchmarks.planner.__main__.DOCS", tmp_path)
    assert page_of(EMBEDDED) == tmp_path / "planner-results.md"
    own = page_of("org/Some_VLM-7B")
    assert own == tmp_path / "planner-results-org-some-vlm-7b.md"
    assert own.read_text().startswith("# Measurements of the planner on org/Some_VLM-7B\n")
    own.write_text("kept")
    assert page_of("org/Some_VLM-7B").read_text() == "kept"
    (tmp_path / "other sizes").mkdir()
    other = page_of(EMBEDDED, None, tmp_path / "other sizes")
    assert other == tmp_path / "other sizes" / "planner-results-embedded.md"


@pytest.fixture
def tiny_model(tmp_path: Path) -> Iterator[str]:
    """A random model of 4 layers and 16 visual tokens as a folder, which is no built-in one."""
    sizes = tiny_models.Sizes(
        patch=24, tower_width=32, tower_layers=1, tower_ffn=32, width=32, layers=4, ffn=48, heads=2
    )
    model, folder = tiny_models.new_model(sizes, seed=0), tmp_path / "tiny"
    model.save_pretrained(folder)
    eos = model.config.text_config.eos_token_id
    GenerationConfig(eos_token_id=eos, pad_token_id=0).save_pretrained(folder)
    tiny_models.new_processor(sizes).save_pretrained(folder)
    yield str(folder)
    world.use(EMBEDDED)


def test_any_model_gets_a_depth_profile_and_says_first_how_long_it_takes(
    tiny_model: str, tmp_path: Path
) -> None:
    written = tmp_path / "page.md"
    shutil.copy(TEMPLATE, written)
    options = ["--model", tiny_model, "--quick", "--processes", "1", "--page", str(written)]
    options += ["--folder", str(tmp_path / "kept"), "--stage", "depth"]
    ended = CliRunner().invoke(main, options, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert ended.output.startswith("At most about")
    parts = _parts(written.read_text())
    assert "4 layers, 16 visual tokens" in parts["setting"]
    assert "before layer | 0 | 1 | 2 | 3 |" in parts["depth"]
    assert parts["schedules"].count("scaled to 4") == len(SCHEDULES)
    assert [path.name for path in tmp_path.rglob("*.svg")] == ["depth.svg"]
    (shown,) = re.findall(r"\((planner/.*/depth\.svg)\)", parts["depth-plot"])
    assert (tmp_path / shown).exists()
    elsewhere, again = tmp_path / "elsewhere", tmp_path / "again.md"
    shutil.move(tmp_path / "kept", elsewhere)
    shutil.rmtree(elsewhere / "profiles")  # only what was found in them is needed
    shutil.copy(TEMPLATE, again)
    options = ["--model", tiny_model, "--quick", "--only-kept", "--folder", str(elsewhere)]
    ended = CliRunner().invoke(main, [*options, "--page", str(again)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert "comparison is left as it is: " in ended.output
    assert _parts(again.read_text()) == parts


def test_a_model_that_is_not_there_ends_the_run_before_anything_is_written(
    tmp_path: Path,
) -> None:
    options = ["--model", str(tmp_path / "none"), "--folder", str(tmp_path / "kept")]
    ended = CliRunner().invoke(main, [*options, "--quick"])
    world.use(EMBEDDED)
    assert ended.exit_code == 1
    assert ended.output.startswith("Error: ")
    assert not (tmp_path / "kept").exists()


def _parts(text: str) -> dict[str, str]:
    """The parts of a page by name."""
    return dict(re.findall(r"<!-- ([\w-]+): [^>]*-->\n(.*?)<!-- end -->", text, flags=re.DOTALL))


@pytest.mark.slow
def test_any_model_is_compared_with_other_methods(tiny_model: str, tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    shutil.copy(TEMPLATE, written)
    options = ["--model", tiny_model, "--quick", "--processes", "1", "--page", str(written)]
    ended = CliRunner().invoke(
        main, [*options, "--folder", str(tmp_path / "kept")], catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    parts = _parts(written.read_text())
    assert {name for name, made in parts.items() if made} == {
        *("setting", "depth-plot", "depth", "schedules", "comparison-plot", "summary"),
        *("verdict", "comparison", "plans"),
    }
    shutil.move(tmp_path / "kept", tmp_path / "elsewhere")
    again = tmp_path / "again.md"
    shutil.copy(TEMPLATE, again)
    options = ["--model", tiny_model, "--quick", "--only-kept", "--page", str(again)]
    ended = CliRunner().invoke(
        main, [*options, "--folder", str(tmp_path / "elsewhere")], catch_exceptions=False
    )
    assert ended.exit_code == 0, ended.output
    assert _parts(again.read_text()) == parts


@pytest.mark.slow
def test_the_whole_benchmark_fills_its_page(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "planner-results.md", tmp_path)
    written = tmp_path / "planner-results.md"
    command = [sys.executable, "-m", "benchmarks.planner", "--quick", "--processes", "1"]
    command += ["--folder", tmp_path / "kept", "--page", written]
    # With the selector of tpcal, the same planners take minutes more.
    for planner in (OURS, *other_planners.METHODS, "AutoPrune with coverage"):
        command += ["--planner", planner]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = written.read_text()
    parts = _parts(text)
    assert len(parts) == 19
    assert all(parts.values())
    pictures = re.findall(r"\(planner/(\w+)\.svg\)", text)
    assert {f"{name}.svg" for name in pictures} == {
        path.name for path in (tmp_path / "planner").iterdir()
    }
