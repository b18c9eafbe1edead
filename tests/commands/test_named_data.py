"""The commands with data sets by name, from generated copies of a few rows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import named_datasets
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from tpcal.calibrate.evaluation.accuracy import compare_all
from tpcal.calibrate.evaluation.compare import Comparison, Entry
from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
from tpcal.calibrate.evaluation.paired_tests import Pair, paired_tests
from tpcal.calibrate.evaluation.shares import MeasuredCost
from tpcal.calibrate.inputs.datasets.catalog import catalog
from tpcal.calibrate.inputs.datasets.hub_check import VerifiedDataset
from tpcal.calibrate.inputs.datasets.hub_rows import FOLDER
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.sample_facts import SampleFacts
from tpcal.calibrate.inputs.samples import Samples
from tpcal.cli import cli
from tpcal.plans import hub
from tpcal.views.datasets_view import verified_line
from tpcal.views.evaluation_view import evaluation_view
from tpcal.views.forecast_view import duration

MIX = "docvqa_lite:2,ocrbench:1,chartqa_lite:1"
CONFIGURATIONS = ("docvqa_val", "textvqa_val", "chartqa", "default")


def _tpcal(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="tpcal", env={"COLUMNS": "200"})


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    folder = named_datasets.write(tmp_path / "copies", only=CONFIGURATIONS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_mix_is_forecast_and_evaluated(copies: Path) -> None:
    # 1. The dry run says what would be measured, and writes nothing.
    dry = _tpcal("calibrate", "--data", MIX, "--layers", "6,7", "--keeps", "0", "--dry-run")
    assert dry.exit_code == 0, dry.output
    rows = [line.split() for line in dry.output.splitlines()]
    assert ["docvqa", "2", "anls"] in rows
    assert ["ocrbench", "1", "contains"] in rows
    assert "Memory: about" in dry.output
    assert "for up to 2 probes" in dry.output
    assert not (copies.parent / "tpcal-out").exists()
    # 2. The evaluation draws the same mix and scores it.
    how = ("--max-new-tokens", "2", "--no-keep", "-o", "eval.json")
    done = _tpcal("eval", "--data", MIX, *how)
    assert done.exit_code == 0, done.output
    found = json.loads((copies.parent / "eval.json").read_text())
    assert found["data"]["groups"] == ["chartqa", "docvqa", "ocrbench"]
    assert found["unpruned"]["accuracy"] is not None


@pytest.mark.parametrize(("more", "n"), [((), 128), (("--max-new-tokens", "2"), 2)])
def test_answers_are_as_long_as_the_data_sets_need(
    copies: Path, more: tuple[str, ...], n: int
) -> None:
    done = _tpcal("eval", "--data", "ocrbench:1", *more)
    assert done.exit_code == 0, done.output
    (kept,) = (copies.parent / "tpcal-out").glob("eval-*/*.jsonl")
    assert json.loads(kept.read_text().splitlines()[0])["max_new_tokens"] == n


def test_the_list_names_rows_groups_metrics_and_licences() -> None:
    result = _tpcal("datasets", "gqa", "lite")
    assert result.exit_code == 0, result.output
    assert result.output.count("_lite ") == 15
    assert "12,578" in result.output
    assert "CC BY-SA 4.0" in result.output
    assert _tpcal("datasets", "gq").exit_code == 2


def test_verification_says_what_matches(copies: Path) -> None:
    good = _tpcal("datasets", "textvqa_lite", "--verify")
    assert good.exit_code == 0, good.output
    assert "24 rows; 3 columns found; asks 'What is written" in good.output
    bad = _tpcal("datasets", "textvqa_lite", "ocrbench", "--verify")
    assert bad.exit_code == 1
    assert "24 rows, 1,000 expected" in bad.output
    assert "1 of 2 data sets are not as listed: ocrbench" in bad.stderr


@pytest.mark.parametrize(
    ("name", "left_out"),
    [("seedbench", "data_type is not image"), ("mmbench", "index >= 1,000,000")],
)
def test_numbers_of_rows_are_not_compared_where_some_are_left_out(
    name: str, left_out: str
) -> None:
    sample = Sample("1", (Image.new("RGB", (4, 4)),), "Which?", "A")
    found = VerifiedDataset(catalog()[name], None, sample, 20_000)
    assert found.matches
    line = verified_line(found).plain
    assert f"20,000 rows (not compared, as rows whose {left_out} are left out);" in line
    assert not replace(found, dataset=catalog()["gqa"]).matches


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (90, "90 s"), (1800, "30 min"), (9000, "2.5 h")]
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_graded_scores_and_f1_stand_in_the_table_and_the_file() -> None:
    image = (Image.new("RGB", (4, 4)),)
    samples = Samples.of(
        [
            *(Sample(f"d{i}", image, "Date?", "may 1", "docvqa", metric="anls") for i in range(6)),
            Sample("p1", image, "A cat?", "yes", "pope", metric="yes_no"),
            Sample("p2", image, "A dog?", "no", "pope", metric="yes_no"),
        ]
    )
    before, after = ["may 1"] * 6 + ["yes", "no"], ["may 2"] * 6 + ["no", "no"]
    unpruned, judged = compare_all(samples, before, [after])
    entry = Entry("plan.yaml", None, None, False, MeasuredCost(), judged)
    (test,) = paired_tests(
        [Pair("plan.yaml", "unpruned", "accuracy", judged.correct_plan, unpruned.correct_unpruned)]
    )
    # Six answers lose one of five characters, one loses all: 2 of 128 signs are as uneven.
    assert (test.p, test.n_changed, test.is_graded) == (2 / 128, 7, True)
    assert test.difference.value == pytest.approx(-(6 * 0.2 + 1) / 8)
    comparison = Comparison(unpruned, (entry,), (test,), {})
    results = EvaluationResults.of(comparison, ModelFacts("tiny"), SampleFacts.of(samples, 0))
    assert EvaluationResults.from_json(json.loads(json.dumps(results.to_json()))) == results
    assert (results.unpruned.f1, results.entries[0].f1) == ({"pope": 1.0}, {"pope": 0.0})
    screen = Console(file=io.StringIO(), width=120)
    screen.print(evaluation_view(results, title="plan.yaml"))
    assert isinstance(screen.file, io.StringIO)
    out = screen.file.getvalue()
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.split()}
    assert rows["docvqa"].startswith("docvqa 6 100 [61, 100] 80 [")
    assert "F1 of the answer yes in pope, %: unpruned 100.0, plan.yaml 0.0." in out
    assert "p = 0.016 (sign-flip test; 7 answers have another score)" in out
