"""`tpcal report` on a small calibration of the built-in model, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pages import Page

from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import load_samples
from tpcal.calibrate.profile import load, newest
from tpcal.cli import cli
from tpcal.plans.plan_file import load_plan, save_plan

Tpcal = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile and a plan from it."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "calibrate --samples 14 --selectors grid --keeps 0.5,0",
            "plan --budget 0.4 --trials 2",
        ):
            result = CliRunner().invoke(cli, command.split())
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def tpcal(made: Path, monkeypatch: pytest.MonkeyPatch) -> Tpcal:
    """Runs a command line in that folder."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(cli, args, prog_name="tpcal")


def test_without_arguments_it_takes_what_lies_here(tpcal: Tpcal, made: Path) -> None:
    done = tpcal("report", "--samples", "2")
    assert done.exit_code == 0, done.output
    html = (made / "report.html").read_text(encoding="utf-8")
    size = f"{len(html.encode()) / 1e6:.1f} MB"
    assert done.stdout.splitlines()[0].startswith(f"✓ report.html ({size}")
    assert (made / "report.html").as_uri() in done.stdout
    page, profile = Page(html), load(newest(made / "tpcal-out"))
    for group in profile.groups:
        assert group in page.text
    facts = " ".join(page.text.split())
    assert "Samples14" in facts
    assert f"Probes{len(profile.probes)}" in facts
    assert "plan.yaml" in page.charts["schedule"]["data"][0]["name"]
    assert "tpcal report --samples 2" in page.text
    assert len([a for a in page.all("img") if (a["src"] or "").startswith("data:image/")]) >= 2


def test_the_measured_plans_of_the_search_are_in_it(tpcal: Tpcal, made: Path) -> None:
    assert tpcal("report", "tpcal-out", "plan.yaml", "--samples", "0").exit_code == 0
    names = [t["name"] for t in Page((made / "report.html").read_text()).charts["front"]["data"]]
    assert "front, measured" in names
    assert "control, measured" in names  # the grid before layer 0, on the same samples
    assert "plan.yaml" in names


def test_no_samples_need_no_model(tpcal: Tpcal, made: Path) -> None:
    args = ("tpcal-out", "plan.yaml", "preset:fastv@0.4", "--model", "./none", "-o", "q.html")
    assert tpcal("report", *args, "--samples", "0").exit_code == 0
    text = Page((made / "q.html").read_text()).text
    assert "No samples are shown: the model was not loaded" in text
    assert "preset:fastv@0.4: not made from a profile" in text
    assert tpcal("report", *args, "--samples", "1").exit_code == 2


def test_a_profile_by_its_file_and_no_plan(tpcal: Tpcal, made: Path) -> None:
    place = str(newest(made / "tpcal-out") / "profile.yaml")
    assert tpcal("report", place, "-o", "alone.html").exit_code == 0  # loads no model either
    text = Page((made / "alone.html").read_text()).text
    assert "No samples are shown, because no plan was named." in text


def test_files_of_others_are_not_overwritten(tpcal: Tpcal, made: Path) -> None:
    (made / "mine.html").write_text("mine")
    done = tpcal("report", "--samples", "0", "-o", "mine.html")
    assert done.exit_code == 2
    assert "mine.html exists and was not made by tpcal" in done.stderr
    assert (made / "mine.html").read_text() == "mine"
    assert tpcal("report", "--samples", "0", "-o", "mine.html", "--force").exit_code == 0
    assert tpcal("report", "--samples", "0", "-o", "mine.html").exit_code == 0  # now it is ours
    assert not list(made.glob(".mine.html*"))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("tpcal-out", "other.yaml"), 5, "made for 9 layers; the profile's model has 8"),
        (("tpcal-out", "."), 2, "Only one profile can be given; got tpcal-out, ."),
        (("none.yaml",), 2, "No plan at none.yaml"),
        (("preset:none",), 2, "No preset is called 'none'"),
        (("-o", "report.txt"), 2, "must end in .html; got report.txt"),
        (("-o", "no/report.html"), 2, "The folder of no/report.html must exist"),
        (("--evaluation", "plan.yaml"), 2, "must be the JSON that tpcal eval -o FILE.json writes"),
        (("--bench", "none.json"), 2, "No file of tpcal bench at none.json"),
        (("--storage", "bad.journal"), 2, "storage must be an Optuna journal"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    tpcal: Tpcal, made: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    plan = load_plan(made / "plan.yaml")
    assert plan.model is not None
    save_plan(replace(plan, model=replace(plan.model, n_layers=9)), made / "other.yaml")
    (made / "bad.journal").write_text("{no journal}\n")
    done = tpcal("report", "--samples", "0", *args)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_without_a_profile_it_says_how_to_make_one(
    tpcal: Tpcal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tpcal("report")
    assert done.exit_code == 2
    assert "No profile in tpcal-out. Make one with: tpcal calibrate." in done.stderr


def test_samples_that_a_plan_was_made_from_are_not_shown(tpcal: Tpcal, made: Path) -> None:
    plan = load_plan(made / "plan.yaml")
    unseen = load_samples(n=8, split="eval").identities
    for known, code in ((unseen[1:], 0), (unseen, 2)):
        data = {**plan.provenance["data"], "seen": pack(known)}
        told = replace(plan, provenance={**plan.provenance, "data": data})
        save_plan(told, made / "told.yaml")
        done = tpcal("report", "tpcal-out", "told.yaml", "--samples", "2", "-o", "told.html")
        assert done.exit_code == code, done.output
    assert "Samples to show must be new to the plans" in done.stderr
    page = Page((made / "told.html").read_text())
    assert len([a for a in page.all("img") if a]) == 1  # only the first is new


def test_reading_leaves_the_profile_as_it_was(tpcal: Tpcal, made: Path) -> None:
    folder = newest(made / "tpcal-out")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert tpcal("report", "--samples", "0").exit_code == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_other_commands_load_neither_plotly_nor_jinja() -> None:
    code = "import sys, tpcal.cli; print(json.dumps([m for m in ('plotly', 'jinja2') if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
