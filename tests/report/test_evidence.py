"""Evaluations and timings: read, checked, and shown."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import NASTY, Page, html_of, small_profile

from tpcal.calibrate.bench.bench_results import BenchResults
from tpcal.calibrate.bench.ratios import Spread
from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
from tpcal.plans.errors import FitError, UsageError
from tpcal.report.bench_section import benches
from tpcal.report.evaluation_section import check_model, evaluations
from tpcal.report.inputs import Material


def _share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def _entry(name: str, kind: str, accuracy: float | None) -> dict[str, Any]:
    right = None if accuracy is None else _share(accuracy)
    return {
        "name": name,
        "kind": kind,
        "beside": "plan.yaml" if kind == "control" else None,
        "cost": {"layer_average_keep": 0.22, "prefill_flops": 0.25, "kv_bytes": 0.3},
        "accuracy": right,
        "difference": None if accuracy is None else _share(accuracy - 0.9),
        "agreement": _share(0.8),
        "worst_group": {"group": NASTY, "value": 0.5},
        "groups": {
            NASTY: {"n": 7, "accuracy": right, "difference": None, "agreement": _share(0.7)}
        },
    }


EVALUATION: dict[str, Any] = {
    "made_by": "made by tpcal 9",
    "command": "tpcal eval",
    "time": "2026",
    "model": {"name": "tiny", "family": "llava", "fingerprint": "sha256:1"},
    "data": {
        "name": "made-up",
        "description": "70 of them",
        "n": 70,
        "groups": [NASTY],
        "n_seen": 0,
    },
    "unpruned": {"accuracy": _share(0.9), "groups": {NASTY: {"n": 7, "accuracy": _share(0.6)}}},
    "entries": [
        _entry("plan.yaml", "plan", 0.85),
        _entry("preset:fastv", "preset", 0.7),
        _entry("random = plan.yaml", "control", 0.6),
    ],
    "tests": [
        {
            "one": "plan.yaml",
            "other": "random = plan.yaml",
            "measure": "accuracy",
            "difference": _share(0.25),
            "p": 1e-6,
            "p_adjusted": 2e-6,
            "n_changed": 30,
        },
        {
            "one": "plan.yaml",
            "other": "unpruned",
            "measure": "accuracy",
            "difference": _share(-0.05),
            "p": 0.04,
            "p_adjusted": 0.08,
            "n_changed": 9,
        },
    ],
}


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.9, "high": median * 1.1}


def _run(name: str, ms: float, ratio: float | None = None) -> dict[str, Any]:
    run = {
        "name": name,
        "ttft_ms": _spread(ms),
        "decoder_ms": _spread(0.8 * ms),
        "token_ms": _spread(2),
        "tokens_per_s": _spread(9),
    }
    run |= {"peak_bytes": None, "kv_bytes": 2048}
    if ratio is not None:
        ratios = {"ttft": _spread(ratio), "token": _spread(1), "throughput": _spread(1 / ratio)}
        run |= {"ratios": ratios, "slower": []}
    return run


BENCH: dict[str, Any] = {
    "made_by": "made by tpcal 9",
    "command": "tpcal bench",
    "time": "2026",
    "model": {"name": "tiny"},
    "machine": {
        "device": "cpu",
        "attention": "sdpa",
        "dtype": "float32",
        "threads": 1,
        "tpcal": "9",
        "torch": "9",
        "transformers": "9",
        "system": "Linux",
    },
    "repeats": 15,
    "cells": [
        {
            **{"batch_size": rows, "n_visual": 144, "n_text": 20, "n_new": 8},
            "runs": [_run("unpruned", 10 * rows), _run("plan.yaml", 10 * rows * ratio, ratio)],
        }
        for rows, ratio in ((1, 1.25), (8, 0.5))
    ],
    "slower": [],
}


def _file(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def of_another(results: Any, fingerprint: str | None) -> Any:
    """The results with another model's structure."""
    return replace(results, model=replace(results.model, fingerprint=fingerprint))


@pytest.fixture
def shown(material: Material, tmp_path: Path) -> Page:
    evaluated = EvaluationResults.load(_file(tmp_path / "eval.json", EVALUATION))
    timed = BenchResults.load(_file(tmp_path / "bench.json", BENCH))
    return Page(html_of(material, evidence=[evaluations(evaluated), benches(timed)]))


def test_an_evaluation_is_shown_with_its_intervals(shown: Page) -> None:
    _, unpruned, plan, control, preset = next(
        rows for caption, rows in shown.tables.items() if caption.startswith("Answers by plan.")
    )
    assert unpruned[4] == "90.0 [85.0, 95.0]"
    assert plan == [
        *("plan.yaml", "0.220", "25 %", "30 %", "85.0 [80.0, 90.0]"),
        *("−5.0 [−10.0, +0.0]", "80", f"{NASTY} 50"),
    ]
    assert (control[0], preset[0]) == ("random", "fastv")  # a control stands below its plan
    assert len([a for a in shown.all("tr") if a.get("class") == "under"]) == 1
    assert shown.tables["Accuracy by group, %"][1] == [NASTY, "60", "85", "70"]
    beside = shown.tables["plan.yaml beside its controls: accuracy by group, %"]
    assert beside[:2] == [
        ["group", "unpruned", "plan.yaml", "random"],
        [NASTY, "60", "85", "60"],
    ]


def test_the_forest_draws_every_figure_where_it_is(shown: Page) -> None:
    chart = shown.charts["evaluation"]
    before, plans, published, control = chart["data"]
    assert (before["x"], before["y"], before["error_x"]["array"]) == ([0.9], [0], [0.05])
    assert (plans["x"], published["x"], control["x"]) == ([0.85], [0.7], [0.6])
    assert plans["y"] < control["y"] < published["y"]
    (line,) = chart["layout"]["shapes"]
    assert (line["x0"], line["x1"]) == (0.9, 0.9)
    words = {(a["text"], a["y"]) for a in chart["layout"]["annotations"]}
    for name, trace in (("plan.yaml", plans), ("random", control), ("fastv", published)):
        assert (name, trace["y"][0]) in words
        assert ("0.220", trace["y"][0]) in words
    low, high = chart["layout"]["xaxis"]["range"]
    assert low < 0.55
    assert high > 0.95


def test_cost_has_an_axis_only_where_costs_differ(
    shown: Page, material: Material, tmp_path: Path
) -> None:
    assert "evaluation-cost" not in shown.charts
    data = deepcopy(EVALUATION)
    data["entries"][1]["cost"]["layer_average_keep"] = 0.35
    section = evaluations(EvaluationResults.load(_file(tmp_path / "eval.json", data)))
    plans, published, control = Page(html_of(material, evidence=[section])).charts[
        "evaluation-cost"
    ]["data"]
    assert (plans["x"], published["x"], control["x"]) == ([0.22], [0.35], [0.22])
    assert (plans["y"], published["y"], control["y"]) == ([0.85], [0.7], [0.6])
    assert (plans["text"], published["text"]) == (["plan.yaml"], ["fastv"])
    assert (control["mode"], control["name"]) == ("markers", "control: random")


def test_tests_are_told_apart_from_chance(shown: Page) -> None:
    _, one, other = next(
        rows for caption, rows in shown.tables.items() if caption.startswith("Paired tests of acc")
    )
    assert one[0] == "plan.yaml − its random"
    assert one[3:] == ["< 0.0001", "< 0.0001"]
    assert other[3:] == ["0.04", "0.08"]
    assert len([a for a in shown.all("tr") if a.get("class") == "strong"]) == 1
    assert "1 of 2 paired comparisons is beyond chance" in shown.text


def test_agreement_stands_in_where_there_are_no_answers(
    material: Material, tmp_path: Path
) -> None:
    data = deepcopy(EVALUATION)
    data["unpruned"]["accuracy"] = data["unpruned"]["groups"][NASTY]["accuracy"] = None
    data["entries"] = [_entry("plan.yaml", "plan", None)]
    section = evaluations(EvaluationResults.load(_file(tmp_path / "eval.json", data)))
    page = Page(html_of(material, evidence=[section]))
    (plans,) = page.charts["evaluation"]["data"]
    assert plans["x"] == [0.8]
    assert page.tables["Agreement with the unpruned model by group, %"][1] == [NASTY, "70"]


def test_an_evaluation_of_another_model_is_refused(tmp_path: Path) -> None:
    evaluated = EvaluationResults.load(_file(tmp_path / "eval.json", EVALUATION))
    check_model(evaluated, "eval.json", small_profile())
    with pytest.raises(FitError, match="made with tiny; the profile is of another model"):
        check_model(of_another(evaluated, "sha256:9"), "eval.json", small_profile())


def test_a_timing_is_shown_cell_by_cell(shown: Page) -> None:
    chart = shown.charts["bench"]
    *lines, first, per_token, throughput = chart["data"]  # one plan, three panels
    assert [line["x"] for line in lines] == [[1, 1]] * 3
    assert (first["x"], per_token["x"], throughput["x"]) == ([1.25, 0.5], [1, 1], [0.8, 2])
    assert first["y"] == [0, 1]
    assert chart["layout"]["yaxis"]["ticktext"] == ["batch 1", "batch 8"]
    assert first["error_x"]["arrayminus"] == [0.125, 0.05]
    ranges = [chart["layout"][name]["range"] for name in ("xaxis", "xaxis2", "xaxis3")]
    assert ranges[0] == ranges[1] == ranges[2]
    assert 10 ** ranges[0][0] < 0.45  # the whole bars are in sight
    assert 10 ** ranges[0][1] > 2.2
    assert shown.tables["Ratios to unpruned"][1][2] == "1.250 [1.125, 1.375]"
    caption = "Medians, and the middle half of the repeats; peak memory is beyond the weights"
    _, unpruned, plan, *_ = shown.tables[caption]
    assert unpruned[:3] == ["batch 1", "unpruned", "10.0 [9.0, 11.0]"]
    assert plan[5:] == ["–", "2 KiB"]
    assert "In all cells: 144 image tokens, 20 text tokens, 8 new tokens." in shown.text
    assert "first token are 0.50 to 1.25 times the unpruned ones" in shown.text


def test_panels_stand_below_each_other_on_a_phone(shown: Page) -> None:
    narrow = shown.charts["bench"]["narrow"]
    tops = [narrow[name]["domain"] for name in ("yaxis", "yaxis2", "yaxis3")]
    assert all(low < high for low, high in tops)
    assert all(above[0] > below[1] for above, below in pairwise(tops))
    assert tops[-1][0] == pytest.approx(0)


def test_prompts_of_several_lengths_say_so(tmp_path: Path) -> None:
    data = deepcopy(BENCH)
    data["cells"][1]["n_text_least"] = 10
    section = benches(BenchResults.load(_file(tmp_path / "bench.json", data)))
    names = section.parts[0].figure.layout.yaxis.ticktext
    assert names == ("batch 1, 20 text tokens", "batch 8, 10–20 text tokens")


def test_what_is_slower_is_said_first(tmp_path: Path) -> None:
    data = {**BENCH, "slower": ["plan.yaml is slower."]}
    assert (
        benches(BenchResults.load(_file(tmp_path / "bench.json", data))).lead
        == "plan.yaml is slower."
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entries": [{"name": "x"}]}, "'cost' is missing"),
        ({"entries": None}, "got something else"),
        ({"entries": [_entry("x", "guess", 0.5)]}, "'guess' is not one of plan, preset, control"),
        (
            {"unpruned": {"accuracy": {"value": "1", "low": 0, "high": 1}, "groups": {}}},
            "'1' is not",
        ),
        ({"model": []}, "got something else"),
        (
            {"unpruned": {"accuracy": {"value": 17, "low": 0, "high": 40}, "groups": {}}},
            "is no share with its interval",
        ),
        (
            {"unpruned": {"accuracy": {"value": 10**400, "low": 0, "high": 1}, "groups": {}}},
            "too large",
        ),
    ],
)
def test_a_damaged_evaluation_is_one_clear_error(tmp_path: Path, change: Any, reason: str) -> None:
    path = _file(tmp_path / "eval.json", EVALUATION | change)
    with pytest.raises(UsageError, match=reason) as caught:
        EvaluationResults.load(path)
    assert f"{path} must be the JSON that tpcal eval -o FILE.json writes" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "null", "\ufeff{}", "NaN"])
@pytest.mark.parametrize("read", [EvaluationResults.load, BenchResults.load])
def test_other_files_are_refused(tmp_path: Path, text: str, read: Any) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="must be the JSON that tpcal"):
        read(path)


def test_numbers_have_to_be_numbers(tmp_path: Path) -> None:
    data = deepcopy(BENCH)
    data["cells"][0]["runs"][0]["ttft_ms"]["median"] = float("nan")
    with pytest.raises(UsageError, match="nan is not a number"):
        BenchResults.load(_file(tmp_path / "bench.json", data))


@pytest.mark.parametrize("name", ["ttft", "token", "throughput"])
def test_no_ratio_of_a_timing_may_be_missing(tmp_path: Path, name: str) -> None:
    data = deepcopy(BENCH)
    del data["cells"][0]["runs"][1]["ratios"][name]
    with pytest.raises(UsageError, match=f"'{name}' is missing"):
        BenchResults.load(_file(tmp_path / "bench.json", data))


def test_impossible_times_are_refused(tmp_path: Path) -> None:
    for change in ({"cells": []}, {"cells": [{**BENCH["cells"][0], "runs": []}]}):
        with pytest.raises(UsageError, match="it has no (cells|runs)"):
            BenchResults.load(_file(tmp_path / "bench.json", BENCH | change))
    data = deepcopy(BENCH)
    data["cells"][0]["runs"][0]["token_ms"]["low"] = -1
    with pytest.raises(UsageError, match="is no spread of times"):
        BenchResults.load(_file(tmp_path / "bench.json", data))


def test_a_timing_of_another_model_is_refused(tmp_path: Path) -> None:
    model = {"name": "other", "fingerprint": "sha256:9"}
    timed = BenchResults.load(_file(tmp_path / "bench.json", BENCH | {"model": model}))
    with pytest.raises(FitError, match="made with other; the profile is of another model"):
        check_model(timed, "bench.json", small_profile())
    check_model(of_another(timed, None), "bench.json", small_profile())


def test_a_timing_of_a_geometry_names_it(tmp_path: Path) -> None:
    data = {k: v for k, v in BENCH.items() if k != "model"} | {"geometry": {"name": "llava-7b"}}
    timed = BenchResults.load(_file(tmp_path / "bench.json", data))
    assert timed.name == "llava-7b"
    assert timed.cells[1].runs[1].ratios["ttft"] == Spread(0.5, 0.45, 0.55)
