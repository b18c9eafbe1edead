"""The whole way as a user goes it, on a small random model: calibrate, plan, check, eval, run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tools.embedded.export import export
from tools.embedded.model import Sizes, new_model
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.profile import load, newest
from tpcal.cli import cli
from tpcal.plans.plan_file import load_plan, save_plan
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan
from tpcal.workflow import certification

SIZES = Sizes(
    tower_width=32, tower_layers=1, tower_ffn=32, width=32, layers=4, ffn=32, heads=2, patch=16
)
Tpcal = Callable[..., Result]
BUILT_IN = ("--data", "embedded")
CALIBRATE = [
    "calibrate",
    "--model",
    "./tiny",
    "--data",
    "embedded",
    "--samples",
    "14",
    "--selectors",
    "attention,grid",
    "--keeps",
    "0.5,0",
]


def make_model(folder: Path, sizes: Sizes) -> None:
    state = new_model(sizes, seed=0).state_dict()
    checkpoint = folder.parent / "checkpoint.pt"
    torch.save({"step": 0, "module": {f"model.{k}": v for k, v in state.items()}}, checkpoint)
    export(checkpoint, sizes, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its profile, a plan from it, images and a data set."""
    folder = tmp_path_factory.mktemp("work")
    make_model(folder / "tiny", SIZES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        calibrated = CliRunner().invoke(cli, CALIBRATE)
        assert calibrated.exit_code == 0, calibrated.output
        planned = CliRunner().invoke(cli, ["plan", "--budget", "0.4", "--trials", "2"])
        assert planned.exit_code == 0, planned.output
    for name in ("red", "blue"):
        Image.new("RGB", (40, 30), name).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest is missing")
    return folder


@pytest.fixture
def tpcal(made: Path, monkeypatch: pytest.MonkeyPatch) -> Tpcal:
    """Runs a command line in that folder, where no plan has been judged yet."""
    monkeypatch.chdir(made)
    (made / "tpcal-out" / "judged.jsonl").unlink(missing_ok=True)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: CliRunner().invoke(cli, args, prog_name="tpcal")


def _is_one_error(result: Result) -> bool:
    return result.stderr.startswith("tpcal: error: ") and result.stderr.count("\n") == 1


def test_the_plan_meets_the_budget_and_says_where_it_comes_from(made: Path) -> None:
    plan = load_plan(made / "plan.yaml")
    assert plan.budget is not None
    assert plan.cost is not None
    assert plan.loss is not None
    assert plan.model is not None
    assert abs(plan.budget.reached - 0.4) <= 1 / plan.cost.n_tokens
    assert set(plan.loss.measured) == set(load(newest(made / "tpcal-out")).groups)
    assert plan.model.family == "llava"
    assert plan.provenance["command"] == "tpcal plan --budget 0.4 --trials 2"
    assert plan.provenance["profile"] == load(newest(made / "tpcal-out")).digest
    assert str(made) not in (made / "plan.yaml").read_text()


def test_plans_of_a_calibration_that_merges_merge_and_answer(tpcal: Tpcal, made: Path) -> None:
    few = (
        "--samples",
        "7",
        "--selectors",
        "grid",
        "--keeps",
        "0.5",
        "--layers",
        "1,2",
        "--full-grid",
    )
    model = ("--model", "./tiny", *BUILT_IN, "--out", "merged")
    result = tpcal("calibrate", *model, *few, "--merge", "proportional")
    assert result.exit_code == 0, result.stderr
    assert load(newest(made / "merged")).merge == "proportional"
    result = tpcal(
        "plan", "--profile", "merged", "--budget", "0.7", "--no-measure", "-o", "m.yaml"
    )
    assert result.exit_code == 0, result.stderr
    said = "which attention counts as often as they stand for others (merge proportional)."
    assert said in " ".join(result.stdout.split())
    assert load_plan(made / "m.yaml").merge == "proportional"
    assert tpcal("check", "m.yaml", "--model", "./tiny").exit_code == 0
    answered = tpcal("run", "--plan", "m.yaml", "--image", "red.png", "what ?")
    assert answered.exit_code == 0, answered.stderr
    result = tpcal("calibrate", *model, *few)  # without the option, tokens are dropped
    assert result.exit_code == 0, result.stderr
    assert {load(path).merge for path in (made / "merged").iterdir()} == {None, "proportional"}


def test_a_certificate_is_proven_and_kept_in_the_plan(tpcal: Tpcal, made: Path) -> None:
    plan = replace(load_plan(made / "plan.yaml"), cuts=(Cut(1, 1.0, "random"),))
    save_plan(plan, made / "all.yaml")  # changes no answer
    few = ["--max-flips", "0.2", "--samples", "28", "--max-new-tokens", "1", *BUILT_IN]
    result = tpcal("certify", "all.yaml", "-o", "proven.yaml", *few)
    assert result.exit_code == 0, result.stderr
    proven = load_plan(made / "proven.yaml").certificate
    assert proven is not None
    assert (proven.n, proven.n_changed, proven.of) == (28, 0, "all samples")
    assert (proven.bound, proven.place) == (0.2, 1)  # the promise, and no tighter bound
    assert "Certified: at most 20 % of the answers change" in result.stdout
    assert "Certified: at most 20 %" in tpcal("show", "proven.yaml").stdout
    assert load_plan(made / "all.yaml").certificate is None


def test_a_plan_that_changes_while_it_is_certified_is_not_replaced(
    tpcal: Tpcal, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(load_plan(made / "plan.yaml"), cuts=(Cut(1, 1.0, "random"),))
    other = replace(plan, name="another")
    save_plan(plan, made / "busy.yaml")
    plain = certification.certify

    def meanwhile(*args: Any, **given: Any) -> Any:
        save_plan(other, made / "busy.yaml")
        return plain(*args, **given)

    monkeypatch.setattr(certification, "certify", meanwhile)
    few = ["--max-flips", "0.3", "--samples", "28", "--max-new-tokens", "1", *BUILT_IN]
    result = tpcal("certify", "busy.yaml", "--seed", "5", *few)
    assert result.exit_code == 0, result.stderr
    assert "busy.yaml has changed meanwhile" in " ".join(result.stderr.split())
    assert load_plan(made / "busy.yaml") == other
    assert load_plan(made / "busy.certified.yaml").certificate is not None


def test_plans_judged_on_the_same_samples_are_tested_ever_more_strictly(
    tpcal: Tpcal, made: Path
) -> None:
    few = ["--samples", "28", "--max-new-tokens", "1"]
    certify = ["--max-flips", "0.2", "--data", "embedded", *few]
    places = []
    for i, layer in enumerate((1, 2, 1)):  # the last is the first again, under another name
        plan = Plan((Cut(layer, 1.0, "random"),), model=load_plan(made / "plan.yaml").model)
        save_plan(replace(plan, name=f"number {i}"), made / "one.yaml")
        result = tpcal("certify", "one.yaml", *certify)
        assert result.exit_code == 0, result.stderr
        proven = load_plan(made / "one.yaml").certificate
        assert proven is not None
        places.append(proven.place)
        assert (f"judgement {proven.place} on these samples" in result.stdout) == (i == 1)
    assert places == [1, 2, 1]
    looked = tpcal("eval", "--plan", "preset:fastv", "--plan", "preset:vtw", *few)
    assert looked.exit_code == 0, looked.stderr
    assert "Judged on these samples so far: 4 plans." in looked.stdout
    made_for = load_plan(made / "plan.yaml").model
    save_plan(Plan((Cut(1, 1.0, "grid"),), model=made_for), made / "one.yaml")
    (made / "tpcal-out" / "judged.jsonl").unlink()  # the user's own folder remembers too
    strict = tpcal("certify", "one.yaml", *certify)
    assert strict.exit_code == 4
    assert "must be at least 31" in strict.stderr
    assert "This is judgement 5 on these samples" in strict.stderr
    fresh = tpcal("certify", "one.yaml", "--seed", "1", *certify)
    assert fresh.exit_code == 0, fresh.stderr


def test_a_plan_is_proven_as_it_is_made(tpcal: Tpcal, made: Path) -> None:
    # Nearly all answers of a random model change, as they are long.
    args = ("plan", "--max-flips", "0.99", "--confidence", "0.5", "--trials", "6")
    result = tpcal(*args, "--certify-samples", "28", "-o", "made.yaml")
    assert result.exit_code == 0, result.stderr
    plan = load_plan(made / "made.yaml")
    assert plan.certificate is not None
    assert plan.budget is None
    assert plan.certificate.bound <= 0.99
    assert plan.certificate.n == 28
    assert plan.certificate.data == "28 built-in scenes (eval, seed 0)"
    assert "Certified: at most" in result.stdout
    args = ("plan", "--max-flips", "0.5", "--confidence", "0.9", "-o", "no.yaml")
    few = tpcal(*args, "--certify-samples", "3")
    assert few.exit_code == 4
    assert "--certify-samples must be at least 5 to prove" in few.stderr
    assert _is_one_error(few), few.stderr
    assert not (made / "no.yaml").exists()


def test_samples_a_plan_was_made_from_prove_nothing(tpcal: Tpcal, made: Path) -> None:
    few = ("--max-flips", "0.5", "--samples", "21", "-o", "no.yaml", *BUILT_IN)
    # Of the 14 samples of the profile, the 28 plans were compared on and the 28 further ones.
    seen = tpcal("certify", "plan.yaml", "--split", "calibration", *few)
    assert seen.exit_code == 2
    assert "must be new; got 21 of 21 that calibration or search looked at" in seen.stderr
    assert _is_one_error(seen), seen.stderr
    apart = tpcal("certify", "plan.yaml", "--split", "calibration", "--seed", "5", *few)
    assert apart.exit_code in (0, 4), apart.stderr


def test_what_cannot_be_proven_exits_with_4_and_writes_nothing(tpcal: Tpcal, made: Path) -> None:
    few = ["--samples", "28", "-o", "no.yaml", *BUILT_IN]
    result = tpcal("certify", "plan.yaml", *few, "--max-flips", "0.2")
    assert result.exit_code == 4
    error = result.stderr.splitlines()[-1]
    assert error.startswith("tpcal: error: At most 0.2 of the answers of all samples")
    assert "samples are needed" in error or "larger budget" in error
    result = tpcal("certify", "plan.yaml", *few, "--max-flips", "0.1")
    assert result.exit_code == 4
    assert "Samples of embedded must be at least 34 to prove" in result.stderr
    assert _is_one_error(result), result.stderr
    assert not (made / "no.yaml").exists()
    result = tpcal("certify", "preset:fastv", *BUILT_IN)
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_a_finished_calibration_is_not_done_again(tpcal: Tpcal, made: Path) -> None:
    before = (newest(made / "tpcal-out") / "arrays.safetensors").stat().st_mtime_ns
    result = tpcal(*CALIBRATE)
    assert result.exit_code == 0
    assert "Next: tpcal plan --budget" in result.stdout
    assert (newest(made / "tpcal-out") / "arrays.safetensors").stat().st_mtime_ns == before


def test_a_finished_search_is_not_done_again(tpcal: Tpcal, made: Path) -> None:
    args = ("plan", "--budget", "0.4", "--trials", "2", "-o", "again.yaml")
    assert tpcal(*args).exit_code == 0
    assert load_plan(made / "again.yaml").cuts == load_plan(made / "plan.yaml").cuts


def test_a_finished_search_needs_neither_model_nor_samples(
    tpcal: Tpcal, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("plan", "--budget", "0.4", "--trials", "2", "-o", "again.yaml")
    before = tpcal(*args)

    def refuse(*_: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr(ModelChoice, "load", refuse)
    monkeypatch.setattr(DataChoice, "load", refuse)
    again = tpcal(*args)
    assert again.exit_code == 0, again.stderr
    assert again.stdout == before.stdout


def test_what_is_remembered_of_samples_may_be_lost(tpcal: Tpcal, made: Path) -> None:
    args = ("plan", "--budget", "0.4", "--trials", "2", "-o", "again.yaml")
    assert tpcal(*args).exit_code == 0
    seen = load_plan(made / "again.yaml").provenance["data"]["seen"]
    file = newest(made / "tpcal-out") / "drawn.json"
    for content in ("", "[]", '{"0 None": [1, 2]}'):
        file.write_text(content)
        assert tpcal(*args).exit_code == 0
        assert load_plan(made / "again.yaml").provenance["data"]["seen"] == seen
    known = json.loads(file.read_text())
    for first, _ in known.values():
        first["sample_group"].reverse()
    file.write_text(json.dumps(known))
    stale = tpcal("plan", "--budget", "0.45", "--trials", "2", "-o", "stale.yaml")
    assert stale.exit_code == 2
    assert "got others, as of an earlier version" in stale.stderr
    assert tpcal("plan", "--budget", "0.45", "--trials", "2", "-o", "new.yaml").exit_code == 0


def test_the_plan_fits_its_model(tpcal: Tpcal) -> None:
    result = tpcal("check", "plan.yaml", "--model", "./tiny")
    assert result.exit_code == 0, result.output
    assert "✓ plan.yaml is a plan that fits ./tiny" in result.stdout


def test_eval_compares_both_models_on_the_plans_own_model(tpcal: Tpcal) -> None:
    result = tpcal("eval", "--plan", "plan.yaml", "--samples", "9", *BUILT_IN)
    assert result.exit_code == 0, result.output
    assert "plan.yaml on embedded" in result.stdout
    for part in ("unpruned", "with plan", "difference", "overall", "95 % interval"):
        assert part in result.stdout


def test_eval_takes_a_preset(tpcal: Tpcal) -> None:
    args = (
        "eval",
        "--plan",
        "preset:pyramiddrop",
        "--model",
        "./tiny",
        "--samples",
        "2",
        *BUILT_IN,
    )
    result = tpcal(*args)
    assert result.exit_code == 0, result.output


def test_run_answers_and_says_what_was_kept(tpcal: Tpcal, made: Path) -> None:
    cuts = (Cut(1, 0.5, "attention"), Cut(3, 0))
    save_plan(Plan(cuts=cuts, model=load_plan(made / "plan.yaml").model), made / "two.yaml")
    images = ("--image", "red.png", "--image", "blue.png")
    result = tpcal("run", "--plan", "two.yaml", *images, "what colour ?")
    assert result.exit_code == 0, result.output
    assert "visual tokens  72, 36 from layer 1, 0 from layer 3" in result.stdout
    assert "saved" in result.stdout


def test_run_works_unpruned_and_without_images(tpcal: Tpcal) -> None:
    for plan in ((), ("--plan", "preset:dart")):
        few = ("--model", "./tiny", "--max-new-tokens", "2")
        result = tpcal("run", *plan, *few, "what colour ?")
        assert result.exit_code == 0, result.output
        assert "visual tokens  0\n" in result.stdout
        assert "saved 0 %" in result.stdout


def test_a_plan_for_another_model_exits_5(tpcal: Tpcal, made: Path) -> None:
    plan = load_plan(made / "plan.yaml")
    assert plan.model is not None
    save_plan(
        replace(plan, model=replace(plan.model, fingerprint="sha256:0")), made / "other.yaml"
    )
    for args in (
        ("check", "other.yaml", "--model", "./tiny"),
        ("eval", "--plan", "other.yaml", *BUILT_IN),
        ("run", "--plan", "other.yaml", "hello"),
    ):
        result = tpcal(*args)
        assert result.exit_code == 5, result.output
        assert "model.fingerprint" in result.stderr
        assert _is_one_error(result), result.stderr


def test_a_plan_for_more_layers_exits_5_with_every_problem(tpcal: Tpcal, made: Path) -> None:
    cuts = (Cut(0, 0.5, "attention"), Cut(7, 0))
    save_plan(Plan(cuts=cuts, model=ModelIdentity(8)), made / "deep.yaml")
    result = tpcal("check", "deep.yaml", "--model", "./tiny")
    assert result.exit_code == 5
    for problem in ("model.n_layers", "cuts[0].layer must be at least 1", "below the model's 4"):
        assert problem in result.stderr


def test_a_profile_is_not_planned_with_another_model(tpcal: Tpcal, made: Path) -> None:
    make_model(made / "wider", replace(SIZES, ffn=64))
    result = tpcal("plan", "--budget", "0.4", "--model", "./wider", "-o", "x.yaml")
    assert result.exit_code == 5, result.output
    assert _is_one_error(result), result.stderr


def test_a_profile_is_not_planned_with_other_samples(tpcal: Tpcal, made: Path) -> None:
    _data(made / "other.jsonl", [{"image": "red.png", "question": "what ?"}])
    result = tpcal("plan", "--budget", "0.4", "--data", "other.jsonl", "-o", "x.yaml")
    assert result.exit_code == 2, result.output
    assert "was measured on other samples" in result.stderr
    assert not (made / "x.yaml").exists()


def _data(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


BAD_DATA = {
    "missing": (None, "data.jsonl"),
    "empty": ([], "data.jsonl"),
    "without an image column": ([{"x": "red.png", "question": "?"}], "no image column"),
    "without a question": ([{"image": "red.png", "y": "?"}], "no question column"),
    "a missing image": ([{"image": "gone.png", "question": "?"}], "no image at"),
    "a broken image": ([{"image": "broken.png", "question": "?"}], "image"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_ends_with_one_line(tpcal: Tpcal, made: Path, kind: str) -> None:
    rows, said = BAD_DATA[kind]
    (made / "data.jsonl").unlink(missing_ok=True)
    if rows is not None:
        _data(made / "data.jsonl", rows)
    result = tpcal("calibrate", "--model", "./tiny", "--data", "data.jsonl", "--out", "no")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert _is_one_error(result), result.stderr
    assert not list((made / "no").glob("*/profile.yaml"))


def test_an_unknown_column_is_answered_with_those_there_are(tpcal: Tpcal, made: Path) -> None:
    _data(made / "data.jsonl", [{"image": "red.png", "question": "what ?"}])
    args = ("--model", "./tiny", "--data", "data.jsonl", "--answer-column", "reply")
    result = tpcal("eval", *args)
    assert result.exit_code == 2
    assert "no column 'reply'. It has these columns: image, question" in result.stderr


@pytest.mark.parametrize(
    ("image", "said"), [("gone.png", "no image at gone.png"), ("broken.png", "broken.png")]
)
def test_bad_images_end_with_one_line(tpcal: Tpcal, image: str, said: str) -> None:
    result = tpcal("run", "--plan", "plan.yaml", "--image", image, "what ?")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert _is_one_error(result), result.stderr


def test_a_layer_the_model_does_not_have_is_refused(tpcal: Tpcal) -> None:
    few = ("--samples", "2", "--layers", "2-9", *BUILT_IN)
    result = tpcal("calibrate", "--model", "./tiny", *few)
    assert result.exit_code == 2
    assert "layers must be in 0..3 for this model; got 4" in result.stderr


def test_models_that_cannot_be_used_end_with_one_line(tpcal: Tpcal, made: Path) -> None:
    shutil.copytree(made / "tiny", made / "text", dirs_exist_ok=True)
    (made / "text" / "config.json").write_text('{"model_type": "llama", "vocab_size": 9}')
    (made / "hollow").mkdir(exist_ok=True)
    said = {
        "./text": "must be a vision-language model",
        "./hollow": "holds no config.json",
        "./gone": "No model folder at ./gone",
        "embeded": "Did you mean embedded",
    }
    for name, part in said.items():
        result = tpcal("run", "--model", name, "what ?")
        assert result.exit_code == 2, result.output
        assert part in result.stderr
        assert _is_one_error(result), result.stderr
