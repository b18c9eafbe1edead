"""tpcal where nothing but what applies plans is installed: what works, and what an error says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tpcal.cli import cli
from tpcal.plans import extras

ROOT = Path(__file__).parents[2]
WITHOUT_EXTRAS = """
import json, sys
from tpcal.plans.extras import EXTRAS
sys.modules.update(dict.fromkeys(module for modules in EXTRAS.values() for module in modules))

import tpcal
from click.testing import CliRunner
from transformers import AutoModelForImageTextToText
from tpcal.calibrate.embedded import FOLDER
from tpcal.cli import cli

given, ended = json.load(sys.stdin), {}
for line in given["lines"]:
    done = CliRunner().invoke(cli, line, prog_name="tpcal")
    ended[" ".join(line)] = (done.exit_code, done.output)
for name in given["functions"]:
    try:
        getattr(tpcal, name)()
    except tpcal.TpcalError as error:
        ended[name] = (error.exit_code, str(error))
model = AutoModelForImageTextToText.from_pretrained(FOLDER)
with tpcal.apply(model, tpcal.load_plan("plan.yaml")) as handle:
    ended["apply"] = (0, str(handle.plan.cuts))
ended["names"] = (0, " ".join(name for name in tpcal.__all__ if getattr(tpcal, name)))
print(json.dumps(ended))
"""
HELP = [[*command, "--help"] for command in ([], *([name] for name in cli.commands))]
IMAGE = ["--image", str(ROOT / "examples" / "images" / "shapes.png"), "What?"]
WORKS = [
    ["convert", "2:fastv:0.5", "--layers", "8", "-o", "plan.yaml"],
    ["check", "plan.yaml"],
    ["check", "plan.yaml", "--model", "embedded"],
    ["show", "plan.yaml"],
    ["show", "preset:dart-128@0.22"],
    ["run", "--plan", "plan.yaml", "--model", "embedded", *IMAGE],
    ["presets"],
    ["selectors"],
]
PLAN = [
    ["calibrate"],
    ["calibrate", "--memory", "8GB"],
    ["plan"],
    ["plan", "--budget", "0.22"],
    ["lower", "plan.yaml", "--engine", "embeddings"],
    ["front"],
    ["eval", "--plan", "plan.yaml", "--control", "grid"],
    ["bench", "--plan", "plan.yaml"],
    ["certify", "plan.yaml"],
    ["run", "--offload", *IMAGE],
]
FUNCTIONS = ["make_profile", "find_plan", "find_front", "lower", "evaluate", "certify"]


# Its tests are marked usual, because whichever is first waits for the process.
@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code and output of every command line and function."""
    given = {"lines": [*HELP, *WORKS, *PLAN, ["report"]], "functions": FUNCTIONS}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        input=json.dumps(given),
        cwd=tmp_path_factory.mktemp("core"),
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("line", [*HELP, *WORKS], ids=" ".join)
def test_what_applies_plans_works_without_extras(line: list[str], ended: dict[str, Any]) -> None:
    code, output = ended[" ".join(line)]
    assert code == 0, output


@pytest.mark.usual
def test_plans_are_applied_from_python_without_extras(ended: dict[str, Any]) -> None:
    assert "keep=0.5" in ended["apply"][1]
    assert "find_plan" in ended["names"][1]


@pytest.mark.usual
@pytest.mark.parametrize("line", PLAN, ids=" ".join)
def test_what_makes_plans_names_the_line_that_installs_it(
    line: list[str], ended: dict[str, Any]
) -> None:
    code, output = ended[" ".join(line)]
    assert code == 2
    assert output.startswith("tpcal: error: This step needs accelerate")
    assert output.endswith("Way out: pip install 'tpcal[plan]'.\n")
    assert output.count("\n") == 1


@pytest.mark.usual
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_name_the_line_that_installs_what_they_need(
    name: str, ended: dict[str, Any]
) -> None:
    code, said = ended[name]
    assert code == 2
    assert said.endswith("Way out: pip install 'tpcal[plan]'.")


@pytest.mark.usual
def test_the_report_names_an_extra_of_its_own(ended: dict[str, Any]) -> None:
    code, output = ended["report"]
    assert code == 2
    assert "plotly, which tpcal alone does not install" in output
    assert output.endswith("Way out: pip install 'tpcal[report]'.\n")


def test_a_folder_beside_the_users_program_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder_of_data").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extras, "EXTRAS", {"plan": ("folder_of_data", "json")})
    assert extras.missing("plan") == ("folder_of_data",)


def test_a_step_asks_only_for_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "EXTRAS", {"plan": ("json", "no_such_module")})
    extras.require("plan", "json")
    with pytest.raises(extras.MissingExtra, match=r"needs no_such_module, .* 'tpcal\[plan\]'\.$"):
        extras.require("plan")
