"""The records of `tpcal eval`: what is written is read again, also by older versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tpcal.calibrate.evaluation.evaluation_results import (
    EntryResult,
    EvaluationResults,
    GroupResult,
    UnprunedGroup,
    UnprunedResult,
    WorstGroup,
)
from tpcal.calibrate.evaluation.shares import MeasuredCost, Share, Test
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.calibrate.inputs.sample_facts import SampleFacts
from tpcal.plans.errors import UsageError

HALF, LOSS = Share(0.5, 0.4, 0.6), Share(-0.25, -0.5, 0.0)
PLAN = EntryResult(
    name="plan.yaml",
    kind="plan",
    beside=None,
    shared=False,
    cost=MeasuredCost(0.2, 0.3, 0.4),
    accuracy=HALF,
    difference=LOSS,
    agreement=HALF,
    worst_group=WorstGroup("reading", 0.5),
    groups={
        "reading": GroupResult(7, HALF, LOSS, HALF),
        "counting": GroupResult(2, None, None, HALF),
    },
)
RESULTS = EvaluationResults(
    time="2026-11-25T12:00:00+00:00",
    model=ModelFacts("tiny", "llava", "sha256:1", "float32", "cpu"),
    data=SampleFacts("made-up", "9 of them", "sha256:2", 9, ("reading", "counting"), 3),
    unpruned=UnprunedResult(
        HALF, {"reading": UnprunedGroup(7, HALF), "counting": UnprunedGroup(2, None)}
    ),
    entries=(
        PLAN,
        replace(PLAN, name="grid = plan.yaml", kind="control", beside="plan.yaml", shared=True),
    ),
    tests=(Test("plan.yaml", "unpruned", "accuracy", LOSS, 0.01, 0.02, 4),),
    impossible={"downsized = plan.yaml": "Images have one size."},
)


def _written(results: EvaluationResults, path: Path) -> Path:
    path.write_text(json.dumps(results.to_json()))
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    assert EvaluationResults.load(_written(RESULTS, tmp_path / "eval.json")) == RESULTS
    same = replace(
        RESULTS,
        unpruned=UnprunedResult(None, {"reading": UnprunedGroup(7, None)}),
        entries=(replace(PLAN, accuracy=None, difference=None, worst_group=None),),
    )
    assert EvaluationResults.load(_written(same, tmp_path / "same.json")) == same


def test_an_older_file_is_read(tmp_path: Path) -> None:
    data = RESULTS.to_json()
    for entry in data["entries"]:
        del entry["shared"]
    del data["impossible"]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(data))
    entries = tuple(replace(entry, shared=False) for entry in RESULTS.entries)
    assert EvaluationResults.load(path) == replace(RESULTS, entries=entries, impossible={})


def test_a_group_is_measured_like_the_whole() -> None:
    assert PLAN.value_of("reading") == HALF
    assert PLAN.value_of("counting") is None  # not its agreement, beside accuracies of others
    assert replace(PLAN, accuracy=None).value_of("counting") == HALF
    assert PLAN.value_of("none") is None


def test_a_difference_may_be_negative_and_an_accuracy_may_not(tmp_path: Path) -> None:
    wrong = replace(RESULTS, entries=(replace(PLAN, accuracy=LOSS),))
    with pytest.raises(UsageError, match="is no share with its interval"):
        EvaluationResults.load(_written(wrong, tmp_path / "eval.json"))
