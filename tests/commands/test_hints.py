"""An own model on own data: the printed hints, pasted, judge it on its own questions."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_end_to_end import SIZES, make_model

from tpcal.calibrate.profile import load, newest
from tpcal.cli import cli
from tpcal.plans import hub
from tpcal.plans.local_paths import without_paths
from tpcal.plans.plan_file import load_plan, save_plan
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan

Tpcal = Callable[..., Result]
N_ROWS, N_SEEN = 24, 12
"""Rows; of these 4 for the profile, the same 4 and 8 more for the search."""
DATA = Path("../the data/rows.jsonl")
OWN = (
    *("--model", "../my vlm", "--data", str(DATA), "--question-column", "asked"),
    *("--answer-column", "said", "--samples", "4", "--seed", "3"),
    *("--selectors", "attention,grid", "--keeps", "0.5,0", "--dtype", "float32"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder, with a model and data beside it, and what calibration said there."""
    folder = tmp_path_factory.mktemp("tree")
    make_model(folder / "my vlm", SIZES)
    (folder / DATA.parent.name).mkdir()
    rows = [{"image": f"{i}.png", "asked": f"what is {i} ?", "said": "red"} for i in range(N_ROWS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / DATA.parent.name / DATA.name).write_text(lines)
    for i in range(N_ROWS):
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(folder / DATA.parent.name / f"{i}.png")
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        done = CliRunner().invoke(cli, ["calibrate", *OWN, "--out", "my profiles"])
        assert done.exit_code == 0, done.output
        (folder / "work" / "said").write_text(done.stdout)
        planned = _pasted(_hints(done.stdout)[0], "--trials", "2")
        assert planned.exit_code == 0, planned.output
        (folder / "work" / "planned").write_text(planned.stdout)
    return folder


@pytest.fixture
def tree(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it elsewhere, worked in."""
    shutil.copytree(made, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree" / "work")
    monkeypatch.setenv("COLUMNS", "40")
    return tmp_path / "tree"


def _tpcal(*args: str) -> Result:
    return CliRunner().invoke(cli, args, prog_name="tpcal")


def _hints(stdout: str) -> list[str]:
    """The commands behind `Next:`, a line each."""
    lines = stdout.partition("Next: ")[2].splitlines()
    return [line.strip() for line in lines if line.strip().startswith("tpcal ")]


def _pasted(hint: str, *more: str) -> Result:
    program, *words = shlex.split(hint)
    assert program == "tpcal"
    return _tpcal(*words, *more)


def _is_one_error(result: Result) -> bool:
    return result.stderr.startswith("tpcal: error: ") and result.stderr.count("\n") == 1


def test_calibration_tells_how_to_plan_and_to_look(tree: Path) -> None:
    folder = newest(Path("my profiles"))
    plan, show = _hints(Path("said").read_text())
    where = shlex.quote(str(folder))
    assert plan == f"tpcal plan --profile {where} --budget 0.22 --dtype float32"
    assert show == f"tpcal show {where}"
    assert _pasted(show).exit_code == 0


def test_a_plan_is_evaluated_on_the_unseen_part_of_its_own_data(tree: Path) -> None:
    (hint,) = _hints(Path("planned").read_text())
    assert hint == "tpcal eval --plan plan.yaml --dtype float32"
    result = _pasted(hint, "-o", "eval.json", "--max-new-tokens", "1")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("eval.json").read_text())
    assert found["model"]["name"] == "../my vlm"
    assert found["data"]["name"] == "rows.jsonl"
    assert (found["data"]["n"], found["data"]["n_seen"]) == (N_ROWS - N_SEEN, 0)
    assert "seed 3" in found["data"]["description"]


def test_hints_are_whole_on_a_narrow_screen_and_quoted(tree: Path) -> None:
    deep = Path("a rather long folder with blanks") / "and a plan of a long name.yaml"
    deep.parent.mkdir()
    result = _tpcal(
        *("plan", str(newest(Path("my profiles"))), "--budget", "0.4", "--trials", "1"),
        *("-o", str(deep)),
    )
    assert result.exit_code == 0, result.output
    (hint,) = _hints(result.stdout)
    assert shlex.split(hint)[-1] == str(deep)
    assert _pasted(hint, "--max-new-tokens", "1").exit_code == 0


def test_a_proof_takes_the_unseen_part_of_the_plans_own_data(tree: Path) -> None:
    save_plan(replace(load_plan("plan.yaml"), cuts=(Cut(1, 1.0, "random"),)), "all.yaml")
    promise = ("--max-flips", "0.5", "--max-new-tokens", "1")
    Path("proofs").mkdir()
    result = _tpcal("certify", "all.yaml", *promise, "-o", "proofs/proven.yaml")
    assert result.exit_code == 0, result.output
    proven = load_plan("proofs/proven.yaml")
    assert proven.certificate is not None
    assert proven.certificate.n == N_ROWS - N_SEEN
    assert "rows.jsonl" in (proven.certificate.data or "")
    again = _tpcal("eval", "--plan", "proofs/proven.yaml", "--max-new-tokens", "1")
    assert again.exit_code == 0, again.output  # it names model and data from its own folder


def test_a_plan_is_proven_and_reported_on_its_own_data(tree: Path) -> None:
    folder = str(newest(Path("my profiles")))
    promise = ("--max-flips", "0.99", "--confidence", "0.6", "--trials", "6")
    result = _tpcal("plan", folder, *promise, "-o", "made.yaml")
    assert result.exit_code in (0, 4), result.output
    if result.exit_code == 0:
        proven = load_plan("made.yaml").certificate
        assert proven is not None
        assert (proven.n, "rows.jsonl" in (proven.data or "")) == (N_ROWS - N_SEEN, True)
    report = _tpcal("report", folder, "plan.yaml", "--samples", "2", "--max-new-tokens", "1")
    assert report.exit_code == 0, report.output


def test_a_shared_plan_of_own_data_is_judged_on_no_other_questions(tree: Path) -> None:
    save_plan(without_paths(load_plan("plan.yaml")), "shared.yaml")
    for command in (("eval", "--plan"), ("certify", "--max-flips", "0.5", "-o", "c.yaml")):
        refused = _tpcal(*command, "shared.yaml", "--model", "../my vlm")
        assert refused.exit_code == 2, refused.output
        assert "(rows.jsonl) must be named with --data" in refused.stderr


def test_a_profile_and_a_plan_are_used_from_another_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = newest(Path("my profiles"))
    monkeypatch.chdir(tree / "the data")
    there = Path("../work") / profile
    Path("out").mkdir()
    result = _tpcal("plan", str(there), "--budget", "0.4", "--trials", "1", "-o", "out/p.yaml")
    assert result.exit_code == 0, result.output
    plan = load_plan("out/p.yaml")
    assert plan.model is not None
    assert (plan.model.name, plan.provenance["data"]["data"]) == ("../../my vlm", "../rows.jsonl")
    result = _pasted(_hints(result.stdout)[0], "--max-new-tokens", "1")
    assert result.exit_code == 0, result.output
    assert (
        _tpcal("run", "--plan", "../work/plan.yaml", "--image", "1.png", "what ?").exit_code == 0
    )


def test_neither_plan_nor_profile_spells_out_the_folders_of_a_machine(tree: Path) -> None:
    for file in (Path("plan.yaml"), newest(Path("my profiles")) / "profile.yaml"):
        assert "/tree" not in file.read_text()
        assert "rows.jsonl" in file.read_text()


def test_what_has_moved_is_named_by_the_option_that_mends_it(tree: Path) -> None:
    folder = str(newest(Path("my profiles")))
    shutil.move(tree / "the data", tree / "moved")
    search = ("plan", folder, "--budget", "0.3", "--trials", "1", "-o", "moved.yaml")
    for args in (search, ("eval", "--plan", "plan.yaml"), ("certify", "plan.yaml")):
        result = _tpcal(*args)
        assert result.exit_code == 2, result.output
        assert _is_one_error(result), result.stderr
        assert "rows.jsonl, and nothing is there. Name where it is now with --data." in (
            result.stderr
        )
    mended = _tpcal(*search, "--data", "../moved/rows.jsonl")
    assert mended.exit_code == 0, mended.output
    (hint,) = _hints(mended.stdout)
    assert _pasted(hint, "--max-new-tokens", "1").exit_code == 0
    shutil.move(tree / "my vlm", tree / "vlm")
    run = ("run", "--plan", "moved.yaml", "--image", "../moved/1.png", "what ?")
    for args in (("eval", "--plan", "moved.yaml"), run):
        result = _tpcal(*args)
        assert result.exit_code == 2, result.output
        assert "my vlm, and nothing is there. Name where it is now with --model." in result.stderr
    named = ("--model", "../vlm", "--max-new-tokens", "1")
    assert _tpcal(*run, *named).exit_code == 0


def test_the_built_in_questions_are_for_the_built_in_model(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    made = load_plan("plan.yaml")
    embedded = {**made.provenance, "data": {**made.provenance["data"], "data": "embedded"}}
    save_plan(replace(made, provenance=embedded), "built-in.yaml")
    save_plan(replace(made, provenance={}), "silent.yaml")
    own = ("--model", "../my vlm")
    for args in (
        ("calibrate", *own),
        ("eval", *own),
        ("eval", "--plan", "preset:fastv", *own),
        ("eval", "--plan", "silent.yaml"),
        ("eval", "--plan", "built-in.yaml"),
        ("certify", "built-in.yaml"),
        ("certify", "preset:fastv", "-o", "x.yaml", *own),
    ):
        result = _tpcal(*args)
        assert result.exit_code == 2, (args, result.output)
        assert _is_one_error(result), result.stderr
        assert "hf download lmms-lab-encoder/LMMs-Eval-Lite" in result.stderr
    folder = _tpcal("certify", "..", "--data", "embedded")
    assert "must be written to a file, and .. is none; name one with --output" in folder.stderr
    few = ("--data", "embedded", "--samples", "2", "--max-new-tokens", "1")
    assert _tpcal("eval", "--plan", "silent.yaml", *few).exit_code == 0


def test_plans_of_several_data_sets_or_for_no_model_are_refused(tree: Path) -> None:
    made = load_plan("plan.yaml")
    shutil.copytree(tree / "the data", tree / "more")
    other = {**made.provenance["data"], "data": "../more/rows.jsonl"}
    save_plan(replace(made, provenance={**made.provenance, "data": other}), "other.yaml")
    result = _tpcal("eval", "--plan", "plan.yaml", "--plan", "other.yaml")
    assert result.exit_code == 2
    assert "The plans must be of one data set; got plan.yaml of ../the data/rows.jsonl" in (
        result.stderr
    )
    save_plan(Plan((Cut(2, 0),), model=ModelIdentity(4)), "bare.yaml")
    for args in (("eval", "--plan", "bare.yaml"), ("run", "--plan", "bare.yaml", "what ?")):
        result = _tpcal(*args)
        assert result.exit_code == 2, result.output
        assert "The model of bare.yaml must be named with --model" in result.stderr


def test_a_plan_whose_record_of_data_was_changed_is_refused_in_one_line(tree: Path) -> None:
    made = load_plan("plan.yaml")
    for wrong in ({"data": 3}, {"data": "x", "seed": "y"}, {"data": "x", "image_column": [1]}):
        save_plan(replace(made, provenance={**made.provenance, "data": wrong}), "wrong.yaml")
        result = _tpcal("eval", "--plan", "wrong.yaml")
        assert result.exit_code == 2, result.output
        assert _is_one_error(result), result.stderr


def test_only_one_profile_is_planned_from(tree: Path) -> None:
    folder = str(newest(Path("my profiles")))
    result = _tpcal("plan", folder, "--profile", folder, "--budget", "0.4")
    assert result.exit_code == 2
    assert "Only one profile can be given" in result.stderr
    shown = _tpcal("plan", str(Path(folder) / "profile.yaml"), "--budget", "0.4", "--no-measure")
    assert shown.exit_code == 0, shown.output


def test_the_front_tells_how_to_get_a_plan(tree: Path) -> None:
    folder = str(newest(Path("my profiles")))
    result = _tpcal("plan", folder, "--no-measure", "--weight", "all=2", "--max-cuts", "2")
    assert result.exit_code == 0, result.output
    (hint,) = _hints(result.stdout)
    assert folder in shlex.split(hint)
    assert "--weight all=2" in hint
    done = _pasted(hint, "--trials", "1", "-o", "fronts.yaml")
    assert done.exit_code == 0, done.output
    assert len(load_plan("fronts.yaml").cuts) <= 2


def test_a_database_with_a_password_is_not_shown(tree: Path) -> None:
    folder = str(newest(Path("my profiles")))
    url = "sqlite:///study.db?password=secret"
    result = _tpcal("plan", folder, "--no-measure", "--storage", url)
    assert result.exit_code == 0, result.output
    assert "secret" not in result.stdout
    assert not _hints(result.stdout)


def test_another_tools_schedule_is_checked_as_the_hint_says(tree: Path) -> None:
    done = _tpcal("convert", "2:fastv:0.5", "--layers", "8", "-o", "another tool's.yaml")
    (hint,) = _hints(done.stdout)
    assert _pasted(hint).exit_code == 0


def test_what_a_profile_keeps_stays_the_same_wherever_it_is_read(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = newest(Path("my profiles")).resolve()
    digest = load(folder).digest
    monkeypatch.chdir(tree)
    assert load(folder).digest == digest
    assert load(folder).model.name == "../../../my vlm"
