"""`tpcal eval` as a user runs it, on a small random model."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Child
from click.testing import CliRunner, Result

from tools.embedded.export import export
from tools.embedded.model import Sizes, new_model
from tpcal.calibrate.inputs.answer_tokens import generate_ids
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.cli import cli
from tpcal.plans.plan_file import save_plan
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan

SIZES = Sizes(
    tower_width=32, tower_layers=1, tower_ffn=32, width=32, layers=4, ffn=32, heads=2, patch=16
)
HALF = Plan((Cut(1, 0.5, "attention"), Cut(3, 0)), model=ModelIdentity(4, name="./tiny"))
FEW = ("--data", "embedded", "--samples", "7", "--max-new-tokens", "2")
Tpcal = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and plans."""
    folder = tmp_path_factory.mktemp("work")
    state = new_model(SIZES, seed=0).state_dict()
    torch.save(
        {"step": 0, "module": {f"model.{k}": v for k, v in state.items()}}, folder / "checkpoint"
    )
    export(folder / "checkpoint", SIZES, folder / "tiny")
    save_plan(HALF, folder / "half.yaml")
    save_plan(replace(HALF, cuts=(Cut(0, 0.25, "grid"),)), folder / "quarter.yaml")
    seen = pack(load_samples(n=3, split="eval").identities)
    facts = {"profile": "sha256:0", "data": {"seen": seen}}
    save_plan(replace(HALF, provenance=facts), folder / "seen.yaml")
    for name, layer in (("deep", 9), ("deeper", 11)):
        save_plan(replace(HALF, model=None, cuts=(Cut(layer, 0),)), folder / f"{name}.yaml")
    return folder


@pytest.fixture
def tpcal(made: Path, monkeypatch: pytest.MonkeyPatch) -> Tpcal:
    """Runs `tpcal eval` in that folder."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(cli, ["eval", *args], prog_name="tpcal")


PLANS = ("--plan", "half.yaml", "--plan", "preset:divprune@0.4")
CONTROLS = ("--control", "random,grid,downsized")


def test_plans_and_controls_stand_side_by_side_in_every_form(tpcal: Tpcal, made: Path) -> None:
    result = tpcal(*PLANS, *CONTROLS, *FEW, "-o", "eval.json", "-o", "eval.md")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "2 plans on embedded, 7 samples"
    assert any(line.split()[:2] == ["half.yaml", "0.500"] for line in lines)
    assert any(line.split()[:2] == ["divprune@0.4", "0.389"] for line in lines)  # 14 of 36
    page = (made / "eval.md").read_text()
    assert "# 2 plans on embedded, 7 samples" in page
    assert "| half.yaml " in page
    found = json.loads((made / "eval.json").read_text())
    assert found["data"]["n"] == 7
    assert found["data"]["n_seen"] == 0
    names = [entry["name"] for entry in found["entries"]]
    assert names[:4] == ["half.yaml", *(f"{k} = half.yaml" for k in CONTROLS[1].split(","))]
    kinds = [entry["kind"] for entry in found["entries"]]
    assert kinds == ["plan", *["control"] * 3, "preset", *["control"] * 3]
    tested = [(test["one"], test["other"]) for test in found["tests"]]
    others = ["unpruned", *(f"{k} = half.yaml" for k in CONTROLS[1].split(","))]
    assert tested == [("half.yaml", other) for other in [*others, "preset:divprune@0.4"]]
    _are_shares(found["entries"])


def test_controls_run_of_the_plans_that_are_named(tpcal: Tpcal, made: Path) -> None:
    of = ("--control", "grid", "--control-of", "half.yaml")
    result = tpcal(*PLANS, *of, *FEW, "-o", "of.json")
    assert result.exit_code == 0, result.stderr
    entries = json.loads((made / "of.json").read_text())["entries"]
    assert [e["name"] for e in entries] == ["half.yaml", "grid = half.yaml", "preset:divprune@0.4"]


def test_presets_alone_are_tested_against_each_other(tpcal: Tpcal, made: Path) -> None:
    names = ("preset:fastv@0.5", "preset:divprune@0.4")
    plans = [word for name in names for word in ("--plan", name)]
    result = tpcal(*plans, "--model", "./tiny", *FEW, "-o", "presets.json")
    assert result.exit_code == 0, result.stderr
    tests = json.loads((made / "presets.json").read_text())["tests"]
    pairs = [(test["one"], test["other"]) for test in tests]
    assert pairs == [*((name, "unpruned") for name in names), names]


def _are_shares(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        assert set(entry["cost"]) == {"layer_average_keep", "prefill_flops", "kv_bytes"}
        for part in (entry, *entry["groups"].values()):
            share = part["agreement"]
            assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
            assert part["difference"]["value"] == pytest.approx(0, abs=1)


def test_what_was_answered_is_not_asked_again(
    tpcal: Tpcal, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tpcal(*PLANS, *FEW)
    assert first.exit_code == 0, first.stderr

    def never(*args: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("tpcal.calibrate.evaluation.generate.generate_ids", never)
    assert tpcal(*PLANS, *FEW).stdout == first.stdout
    assert tpcal(*PLANS, *FEW, "--fresh").exit_code == 1
    for file in (made / "tpcal-out").glob("eval-*/*.jsonl"):
        file.write_text("mine\n")
    result = tpcal(*PLANS, *FEW)
    assert result.exit_code == 2
    assert "must hold answers that tpcal eval kept" in result.stderr
    monkeypatch.undo()
    monkeypatch.chdir(made)
    assert tpcal(*PLANS, *FEW, "--fresh").exit_code == 0


def test_a_folder_that_cannot_be_written_stops_eval_before_the_model_is_loaded(
    tpcal: Tpcal, made: Path
) -> None:
    (made / "file").write_text("")
    result = tpcal(*PLANS, *FEW, "--out", "file/answers")
    assert result.exit_code == 2
    assert result.stderr == (
        "tpcal: error: file/answers cannot be written: Not a directory. Name another folder with "
        "--out, or add --no-keep.\n"
    )


def test_answers_go_to_the_folder_asked_for_or_nowhere(
    tpcal: Tpcal, made: Path, tmp_path: Path
) -> None:
    kept = tpcal(*PLANS, *FEW, "--out", str(tmp_path / "answers"))
    assert len(list(tmp_path.glob("answers/eval-*/*.jsonl"))) == 3
    before = sorted(path for path in made.rglob("*"))
    nothing = tpcal(*PLANS, *FEW, "--no-keep")
    assert (nothing.exit_code, nothing.stdout) == (0, kept.stdout)
    assert sorted(path for path in made.rglob("*")) == before


COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
from tpcal.cli import main
main()
"""


def test_an_interrupted_evaluation_continues(
    tpcal: Tpcal, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--plan", "half.yaml", "--data=embedded", "--samples", "40")
    args += ("--batch-size", "2", "--max-new-tokens=4")
    before = set((made / "tpcal-out").glob("eval-*/*"))
    with Child(COMMAND, "eval", *args, stream=2, cwd=made) as child:
        n_kept: list[int] = []
        while child.is_running and sum(n > 4 for n in n_kept) < 2:
            time.sleep(0.02)
            files = set((made / "tpcal-out").glob("eval-*/*.jsonl")) - before
            n_kept = [file.read_text().count("\n") - 1 for file in files]
        child.send(signal.SIGINT)
        said = child.lines.read()
        assert child.wait() == 130
    assert said.endswith("tpcal: Interrupted; run the same command again to continue.\n")
    n_kept = [file.read_text().count("\n") - 1 for file in files]
    asked = 0

    def counted(*args: Any) -> list[list[int]]:
        nonlocal asked
        asked += 1
        return generate_ids(*args)

    monkeypatch.setattr("tpcal.calibrate.evaluation.generate.generate_ids", counted)
    result = tpcal(*args)
    assert result.exit_code == 0, result.stderr
    assert asked == 2 * 20 - sum(n_kept) // 2
    assert 0 < asked < 2 * 20


def test_samples_that_a_plan_was_made_from_are_refused(tpcal: Tpcal, made: Path) -> None:
    args = ("--plan", "half.yaml", "--plan", "seen.yaml", *FEW)
    result = tpcal(*args)
    assert result.exit_code == 2
    assert "must be new; got 3 of 7 that a plan was made from" in result.stderr
    assert "--allow-seen" in result.stderr
    assert result.stderr.count("\n") == 1
    allowed = tpcal(*args, "--allow-seen", "-o", "seen.json", "-o", "seen.md")
    assert allowed.exit_code == 0
    assert "3 of 7 samples are among those" in allowed.stderr
    assert "(3 of 7 samples seen by a plan)" in allowed.stdout
    assert "(3 of 7 samples seen by a plan)" in (made / "seen.md").read_text()
    assert json.loads((made / "seen.json").read_text())["data"]["n_seen"] == 3


def test_every_plan_that_does_not_fit_is_named_before_anything_runs(tpcal: Tpcal) -> None:
    plans = [f"--plan={name}.yaml" for name in ("half", "deep", "deeper")]
    result = tpcal(*plans, "--model", "./tiny", "--data", "embedded")
    assert result.exit_code == 5
    assert "half.yaml" not in result.stderr
    for name in ("deep.yaml", "deeper.yaml"):
        assert f"2 plans: {name}: cuts[0].layer" in result.stderr
    assert "Unpruned" not in result.stderr


def test_plans_that_cannot_be_compared_are_refused(tpcal: Tpcal, made: Path) -> None:
    model = ModelIdentity(4, name="another")
    save_plan(replace(HALF, model=model), made / "another.yaml")
    said = {
        ("--plan", "half.yaml", "--plan", "half.yaml"): "must be named once; got half.yaml",
        ("--plan", "half.yaml", "--plan", "./half.yaml"): "must be named once; got half.yaml",
        ("--plan", "half.yaml", "--plan", "another.yaml"): "another.yaml for another. Name one",
        ("--control", "grid"): "--control must come with --plan",
        ("--plan", "half.yaml", "--control-of", "half.yaml"): "must come with --control; got it",
        (*PLANS, "--control=grid", "--control-of", "x.yaml"): "must name a --plan, as it stands",
        ("--plan", "half.yaml", "--control", "hat"): "one of random, grid, downsized",
    }
    for args, part in said.items():
        result = tpcal(*args)
        assert result.exit_code == 2
        assert part in result.stderr
        assert result.stderr.count("\n") == 1


def test_names_stay_whole_in_every_form(tpcal: Tpcal, made: Path) -> None:
    save_plan(HALF, made / "a[b]|<i>.yaml")
    done = tpcal("--plan", "a[b]|<i>.yaml", "--plan", "quarter.yaml", *FEW, "-o", "names.md")
    assert done.exit_code == 0, done.output
    assert "a[b]|<i>.yaml" in done.stdout
    lines = (made / "names.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and "a[b]" in line]
    assert rows
    assert all("a[b]\\|&lt;i>.yaml" in row for row in rows)


def test_a_budget_is_judged_at_the_depth_of_the_model(tpcal: Tpcal) -> None:
    done = tpcal("--plan", "preset:fastv@0.01", "--model", "tiny", *FEW)
    assert done.exit_code == 3
    assert "on 4 layers" in done.stderr


def test_one_plan_has_its_groups_its_test_and_its_cost(tpcal: Tpcal) -> None:
    out = tpcal("--plan", "quarter.yaml", *FEW).stdout
    for part in ("with plan %", "exact McNemar test", "Same answers as unpruned"):
        assert part in out
    assert "Layer-average keep, as measured: 0.2500" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_the_unpruned_model_alone_is_written_too(tpcal: Tpcal, made: Path) -> None:
    result = tpcal("--model", "./tiny", *FEW, "-o", "alone.json", "-o", "alone.md")
    assert result.exit_code == 0, result.stderr
    found = json.loads((made / "alone.json").read_text())
    assert found["entries"] == found["tests"] == []
    assert found["unpruned"]["accuracy"]["value"] == pytest.approx(0.5, abs=0.5)
    assert "| overall |" in " ".join((made / "alone.md").read_text().split())
