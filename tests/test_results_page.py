"""docs/results.md and README's table say what the folders of `make evidence` say."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import generate
import pytest
from pages import small_profile
from results_records import RESULTS, Evidence, load_all
from results_summary import readme, status

from tools.evidence.run import Journal, summary, write_json
from tools.evidence.steps import Settings, Step
from tpcal.calibrate.bench.bench_results import BenchResults, Machine
from tpcal.calibrate.bench.ratios import Cell, GenerationRun, Repeat
from tpcal.calibrate.evaluation.evaluation_results import (
    EntryResult,
    EvaluationResults,
    UnprunedGroup,
    UnprunedResult,
    WorstGroup,
)
from tpcal.calibrate.evaluation.shares import MeasuredCost, Share, Test
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.calibrate.inputs.sample_facts import SampleFacts

MACHINE = Machine("a processor", "sdpa", "float32", 1, "0.2", "2", "5", "Linux")
BUDGETS = (0.22, 0.5)


def _share(value: float) -> Share:
    return Share(value, max(0.0, value - 0.05), min(1.0, value + 0.05))


def _entry(name: str, kind: str, right: float, beside: str | None = None) -> EntryResult:
    worst = WorstGroup("reading", right - 0.2)
    shares = _share(right), None, _share(right)
    return EntryResult(name, kind, beside, False, MeasuredCost(), *shares, worst, {})


def _evaluation(settings: Settings, budget: float, p: float, ours: float) -> EvaluationResults:
    plan = str(settings.plan(budget))
    difference = Share(ours - 0.8, -0.3, 0.3)
    best = f"preset:divprune@{budget:g}"
    entries = [
        _entry(plan, "plan", ours),
        _entry(f"random = {plan}", "control", 0.5, plan),
        _entry(f"grid = {plan}", "control", 0.6, plan),
        _entry(best, "preset", 0.8),
    ]
    if budget > 0.3:  # no cheaper one can be had
        entries.append(_entry(f"preset:fastv@{budget:g}", "preset", 0.7))
    groups = {"reading": UnprunedGroup(35, _share(0.9)), "counting": UnprunedGroup(35, None)}
    return EvaluationResults(
        "2026-11-26T12:00:00+00:00",
        ModelFacts(settings.model, "llava", "sha256:1", "float32", "cpu"),
        SampleFacts("embedded", "70 built-in scenes (eval, seed 0)", None, 70, tuple(groups), 0),
        UnprunedResult(_share(0.95), groups),
        tuple(entries),
        (
            Test(plan, "unpruned", "accuracy", difference, 0.01, 0.02, 4),
            Test(plan, best, "accuracy", difference, p / 2, p, 9),
        ),
        {},
    )


def _times() -> BenchResults:
    def run(name: str, factor: float, n_bytes: int) -> GenerationRun:
        repeats = tuple(Repeat(factor * 10, factor * 7, factor * 2, 100 / factor) for _ in "12345")
        return GenerationRun(name, repeats, None, n_bytes)

    plans = run("results/x/plan-0.22.yaml", 0.5, 250), run("preset:divprune@0.22", 0.8, 300)
    cell = Cell(8, 144, 20, 20, 16, run("unpruned", 1.0, 1000), plans)
    return BenchResults.of(ModelFacts("x", "llava", "sha256:1", "float32", "cpu"), MACHINE, [cell])


def _write(
    results: Path,
    model: str,
    n_layers: int,
    found: Mapping[float, tuple[float, float]],
    merge: str | None = None,
) -> None:
    """The folder of a run, of the records that its steps write."""
    folder = results / (f"{model}-{merge}" if merge else model)
    settings = Settings(model, folder, results / "work", BUDGETS, merge=merge)
    small = small_profile()
    profile = replace(small, shape=replace(small.shape, n_layers=n_layers))
    settings.results.mkdir(parents=True)
    for budget, (p, ours) in found.items():
        made = _evaluation(settings, budget, p, ours).to_json()
        write_json(settings.answers(budget), made)
    write_json(settings.results / "bench.json", _times().to_json())
    journal, step = Journal(results / "steps.json"), Step("calibrate", ("calibrate",), None)
    if not journal.steps():
        journal.add(step, 120, ended=True)
    about = summary(settings, profile, [step], journal)
    write_json(settings.results / "summary.json", about)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two models: one on which tpcal is ahead at 0.22, and one on which nothing is proven."""
    _write(tmp_path / "results", "smol", 12, {0.22: (0.2, 0.83), 0.5: (0.9, 0.8)})
    _write(tmp_path / "results", "embedded", 6, {0.22: (0.001, 0.91), 0.5: (0.04, 0.75)})
    return tmp_path / "results"


def test_the_page_shows_all_models_side_by_side_with_their_drop_all_curves(results: Path) -> None:
    page = generate.results_page(results)
    assert "**No published checkpoint has been measured yet.**" in page
    table = _rows(page[page.index("side by side") :])
    assert table[0] == ["", "0.22", "0.50"]
    assert table[2] == ["**embedded (6 layers)**, unpruned", "95.0 / 90", "95.0 / 90"]
    assert table[3] == ["**tpcal**", "**91.0 / 71**", "**75.0 / 55**"]
    assert table[4] == ["best published method", "80.0 / 60 divprune", "80.0 / 60 divprune"]
    assert table[5] == ["best control", "60.0 / 40 grid", "60.0 / 40 grid"]
    assert table[6][0] == "**smol (12 layers)**, unpruned"
    curves = _rows(page[page.index("at a share of the depth") :])
    assert [row[0] for row in curves[2:6]] == [
        *("embedded (6 layers)", "· its worst group", "smol (12 layers)", "· its worst group")
    ]
    losses = [float(cell) for cell in curves[2][1:]]
    assert losses == sorted(losses, reverse=True)
    first = load_all(results)[0].drop_all()[0]
    assert curves[2][1] == f"{first:.2f}"  # before layer 0


def test_a_section_gives_every_method_and_says_what_is_beyond_noise(results: Path) -> None:
    page = generate.results_page(results)
    own = page[page.index("## Results of the built-in model embedded") :]
    own = own[: own.index("## Results of the built-in model smol")]
    assert "questions that no plan was made from: 70 built-in scenes (eval, seed 0)." in own
    assert "Its commands took 2 minutes together, with tpcal " in own
    assert "in float32 on a processor with 1 thread, medians of 5 repeats" in own
    rows = {row[0]: row[1:] for row in _rows(own)}
    assert rows["fastv"] == ["–", "70.0 / 50"]
    assert "- **0.22**: tpcal is 11.0 points ahead of divprune, the best other method" in own
    # Its p-value is 0.0005, the smallest of four tests at two budgets.
    assert "(p = 0.002 after correction for all budgets, beyond noise)" in own
    assert "- **0.50**: tpcal is 5.0 points behind divprune" in own
    other = page[page.index("## Results of the built-in model smol") :]
    assert "- **0.50**: tpcal is level with divprune" in other
    assert "| batch 8, 144 + 20 tokens | tpcal | 0.50 | 0.50 | 2.00 | 0.25 |" in own


def test_what_is_said_of_a_model_follows_from_its_tests(results: Path) -> None:
    said = readme(load_all(results))
    assert (
        "On embedded tpcal is, beyond noise, ahead of the best other method at 0.22 and behind "
        "the best other method at 0.50.\n"
        "On smol the difference from the best other method is within noise at every budget.\n"
    ) in said


def test_a_published_checkpoint_is_no_built_in_model(results: Path) -> None:
    _write(results, "llava-1.5-7b", 3, {0.22: (0.2, 0.83), 0.5: (0.9, 0.8)})
    found = load_all(results)
    assert [evidence.model for evidence in found] == ["embedded", "smol", "llava-1.5-7b"]
    assert status(found) == "Published checkpoints measured so far: llava-1.5-7b.\n"
    assert "llava" not in readme([e for e in found if e.is_built_in])


@pytest.fixture
def merged(results: Path) -> Path:
    """The same two models, and one of them again with plans that merge tokens."""
    figures = {0.22: (0.9, 0.8), 0.5: (0.001, 0.93)}
    _write(results, "embedded", 6, figures, merge="proportional")
    return results


def test_a_model_that_was_also_measured_with_tokens_merged_gains_one_row(merged: Path) -> None:
    page = generate.results_page(merged)
    table = _rows(page[page.index("side by side") :])[2:11]
    assert [row[0] for row in table] == [
        "**embedded (6 layers)**, unpruned",
        *("**tpcal**", "best published method", "best control"),
        "**tpcal, tokens merged**",
        "**smol (12 layers)**, unpruned",
        *("**tpcal**", "best published method", "best control"),
    ]
    assert table[1][1:] == ["**91.0 / 71**", "**75.0 / 55**"]
    assert table[4][1:] == ["**80.0 / 60**", "**93.0 / 73**"]
    curves = _rows(page[page.index("at a share of the depth") :])
    titles = [row[0] for row in curves[2:7] if row[0].endswith("layers)")]
    assert titles == ["embedded (6 layers)", "smol (12 layers)"]
    assert "## Results of the built-in model embedded, tokens merged\n" in page


def test_two_kinds_of_merging_have_headings_of_their_own(merged: Path) -> None:
    _write(merged, "embedded", 6, {0.22: (0.2, 0.9), 0.5: (0.9, 0.8)}, merge="mean")
    page = generate.results_page(merged)
    headings = re.findall("^## Results of the built-in model embedded.*", page, re.MULTILINE)
    assert [heading.partition("embedded")[2] for heading in headings] == [
        "",
        ", tokens merged",
        ", tokens merged (mean)",
    ]
    assert "**tpcal, tokens merged (mean)**" in page


def test_what_is_said_of_merged_tokens_follows_from_their_own_tests(merged: Path) -> None:
    said = readme(load_all(merged))
    assert (
        "On embedded tpcal is, beyond noise, ahead of the best other method at 0.22 and behind "
        "the best other method at 0.50.\n"
        "On embedded, with tokens merged, tpcal is, beyond noise, ahead of the best other method, "
        "which drops tokens, at 0.50; elsewhere the difference is within noise.\n"
    ) in said
    _check_figures(generate.readme(merged), merged)


def test_a_model_that_was_measured_with_tokens_merged_alone_is_whole(tmp_path: Path) -> None:
    _write(tmp_path, "smol", 12, {0.22: (0.2, 0.83), 0.5: (0.9, 0.8)}, merge="mean")
    page = generate.results_page(tmp_path)
    table = _rows(page[page.index("side by side") :])
    assert table[2][0] == "**smol, tokens merged (mean) (12 layers)**, unpruned"
    assert table[3] == ["**tpcal**", "**83.0 / 63**", "**80.0 / 60**"]
    curves = _rows(page[page.index("at a share of the depth") :])
    assert curves[2][0] == "smol, tokens merged (mean) (12 layers)"


def test_a_checkpoint_that_was_measured_twice_is_named_once(results: Path) -> None:
    for merge in (None, "mean"):
        _write(results, "llava-1.5-7b", 3, {0.22: (0.2, 0.83), 0.5: (0.9, 0.8)}, merge)
    assert status(load_all(results)) == "Published checkpoints measured so far: llava-1.5-7b.\n"


def test_the_figures_of_readme_are_those_of_the_folders(results: Path) -> None:
    _check_figures(generate.readme(results), results)
    assert generate.readme(results / "none") == generate.README.read_text(encoding="utf-8")


@pytest.mark.skipif(not any(RESULTS.glob("*/summary.json")), reason="no folder of results yet")
def test_the_figures_of_readme_are_those_of_the_models_that_were_measured() -> None:
    _check_figures(generate.README.read_text(encoding="utf-8"), RESULTS)


def _check_figures(page: str, folder: Path) -> None:
    """Compares the table with the files themselves."""
    table = _rows(page[page.index("<!-- results: ") :])
    for path in folder.glob("*/summary.json"):
        evidence = Evidence.load(path.parent)
        if not evidence.is_built_in:
            continue
        plain = f"**{evidence.model} ({evidence.summary['n_layers']} layers)"
        (start,) = (i for i, row in enumerate(table) if row[0].startswith(plain))
        for column, budget in enumerate(evidence.answers, 1):
            file = path.parent / f"eval-{budget:g}.json"
            data = json.loads(file.read_text(encoding="utf-8"))
            right = {
                kind: [100 * e["accuracy"]["value"] for e in data["entries"] if e["kind"] == kind]
                for kind in ("plan", "preset", "control")
            }
            rows = table[start:][:4]
            wanted = [100 * data["unpruned"]["accuracy"]["value"], *map(max, right.values())]
            if evidence.merges:  # one row below those of the same model
                rows, wanted = table[start + 4 :][:1], wanted[1:2]
                assert rows[0][0] == "**tpcal, tokens merged**"
            shown = [float(re.findall(r"[\d.]+", row[column])[0]) for row in rows]
            assert shown == pytest.approx(wanted, abs=0.051)


def _rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, row after row."""
    return [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
