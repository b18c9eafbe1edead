"""`tpcal check --engine vllm` says before a server starts what would stop it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import tpcal
from tpcal import Cut, Plan
from tpcal.cli import cli
from tpcal.plans.errors import FitError
from tpcal.plans.plan_records import ModelIdentity

DEEP = Plan(name="deep", cuts=(Cut(2, 0.5, "diversity"), Cut(6, 0.0)))
UNEVEN = Plan(cuts=(Cut(1, 0.5, "grid"),))


def _check(plan: Plan, folder: Path, *options: str) -> tuple[int, str]:
    tpcal.save_plan(plan, folder / "plan.yaml")
    command = ["check", str(folder / "plan.yaml"), "--engine", "vllm", *options]
    done = CliRunner().invoke(cli, command, prog_name="tpcal", env={"COLUMNS": "400"})
    return done.exit_code, done.output


def test_a_plan_that_runs_is_described_for_the_model(tmp_path: Path) -> None:
    code, output = _check(DEEP, tmp_path, "--model", "embedded")
    assert code == 0, output
    assert "In vLLM: Plan deep (sha256:" in output
    assert "Of an image of 144 tokens 72, 0 are left." in output
    assert "in 4 block tables" in output  # stages of 2, 4 and 2 layers


def test_a_plan_that_reads_the_question_runs_without_the_prefix_cache(tmp_path: Path) -> None:
    code, output = _check(Plan(cuts=(Cut(2, 0.5, "attention"),)), tmp_path, "--model", "embedded")
    assert code == 0, output
    assert (
        "Requests with images or videos use no prefix cache, because selectors read their"
        in output
    )


def test_stages_that_need_many_block_tables_are_named(tmp_path: Path) -> None:
    code, output = _check(UNEVEN, tmp_path, "--model", "embedded")
    assert code == 0, output
    assert "Stages of 1, 7 layers need 8 block tables" in output


@pytest.mark.parametrize("options", [(), ("--model", "embedded")])
def test_a_plan_that_does_not_run_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    code, output = _check(Plan(cuts=(Cut(2, 0.5, "visionzip"),)), tmp_path, *options)
    assert code == 5
    assert "plan.yaml in vLLM: cuts[0].selector: visionzip needs the vision tower" in output


@pytest.mark.parametrize("options", [(), ("--model", "embedded")])
def test_a_plan_that_counts_merged_tokens_is_refused_with_the_way_out(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    code, output = _check(replace(DEEP, merge="proportional"), tmp_path, *options)
    assert code == 5
    assert "in vLLM: merge must be absent or mean in vLLM; got proportional." in output
    assert "Calibrate with --merge mean." in output


def test_laws_and_engine_are_checked_together(tmp_path: Path) -> None:
    options = ("--deep", "--model", "embedded")
    code, output = _check(Plan(cuts=(Cut(2, 0.5, "visionzip"),)), tmp_path, *options)
    assert code == 5
    assert "plan.yaml in vLLM: cuts[0].selector: visionzip needs the vision tower" in output


def test_a_plan_names_its_architecture(tmp_path: Path) -> None:
    gemma = ModelIdentity(n_layers=8, architecture="Gemma3ForConditionalGeneration")
    code, output = _check(replace(DEEP, model=gemma), tmp_path)
    assert code == 5
    assert "got Gemma3ForConditionalGeneration" in output


def test_a_preset_is_scaled_as_a_server_does() -> None:
    command = ["check", "preset:pyramiddrop@0.5", "--engine", "vllm", "--model", "embedded"]
    done = CliRunner().invoke(cli, command, prog_name="tpcal", env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    plan = tpcal.load_plan("preset:pyramiddrop@0.5", 8, 144)
    counts = ", ".join(map(str, plan.counts(144)))
    assert f"Of an image of 144 tokens {counts} are left." in done.output


def test_an_engine_of_embeddings_is_asked_with_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpcal.save_plan(Plan(cuts=(Cut(0, 0.5, "grid"),)), tmp_path / "plan.yaml")
    command = ["check", str(tmp_path / "plan.yaml"), "--engine", "embeddings"]
    command += ["--model", "embedded"]
    done = CliRunner().invoke(cli, command, prog_name="tpcal", env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output

    def refused(*_: object) -> None:
        raise FitError("The decoder", ["It must read embeddings and positions alone."])

    monkeypatch.setattr("tpcal.plans.executor.prompt_embeddings._refuse_more", refused)
    done = CliRunner().invoke(cli, command, prog_name="tpcal", env={"COLUMNS": "400"})
    assert done.exit_code == 5
    assert "prompt embeddings: It must read embeddings and positions alone." in done.output


def test_without_a_model_the_plan_alone_is_checked(tmp_path: Path) -> None:
    code, output = _check(DEEP, tmp_path)
    assert (code, "well-formed" in output) == (0, True)
