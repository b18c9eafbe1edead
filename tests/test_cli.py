"""The command line: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from packaging.version import Version
from rich.console import Console, RenderableType

from tpcal import __version__
from tpcal.calibrate.evaluation.accuracy import Evaluation
from tpcal.calibrate.evaluation.compare import Comparison, Entry
from tpcal.calibrate.evaluation.evaluation_results import EvaluationResults
from tpcal.calibrate.evaluation.shares import MeasuredCost
from tpcal.calibrate.inputs.model_facts import ModelFacts
from tpcal.calibrate.inputs.sample_facts import SampleFacts
from tpcal.calibrate.probe_grid import DEFAULT_KEEPS, DEFAULT_SELECTORS
from tpcal.calibrate.profile import Probe, Profile, load, save
from tpcal.cli import cli
from tpcal.commands.plan import plan as plan_command
from tpcal.planner.prediction.objective import WORST_SHARES
from tpcal.plans.cost import DecoderShape, plan_cost
from tpcal.plans.errors import BudgetError, FitError, GuardrailError, SlowerError
from tpcal.plans.plan_file import load_plan, presets, save_plan
from tpcal.plans.plan_records import Cut, Loss, ModelIdentity, Plan, ReachedBudget
from tpcal.terminal import Commands, keep_secrets, short_command
from tpcal.views.evaluation_groups import group_view

ROOT = Path(__file__).parents[1]
MEANT = (
    "Did you mean one of: '--budget'"
    if Version(version("click")) >= Version("8.4")
    else "Possible options: --budget"
)
"""What click says about a misspelled option."""
COMMANDS = (
    "calibrate",
    "plan",
    "lower",
    "front",
    "convert",
    "check",
    "show",
    "eval",
    "bench",
    "certify",
    "verify",
    "report",
    "run",
    "serve",
    "push",
    "pull",
    "presets",
    "selectors",
    "datasets",
    "doctor",
)
HEAVY = ["torch", "transformers", "optuna", "datasets", "rich", "numpy", "scipy", "PIL"]
Tpcal = Callable[..., Result]
GOOD = """
schema: 1
model: {n_layers: 8}
cuts:
  - {layer: 2, keep: 0.5, selector: grid}
  - {layer: 5, keep: 0}
"""


@pytest.fixture
def tpcal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tpcal:
    """Runs a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("TPCAL_DEBUG", raising=False)
    return lambda *args: CliRunner().invoke(cli, args, prog_name="tpcal")


@pytest.fixture
def plan() -> Plan:
    """A plan with everything a search writes."""
    bare = Plan(
        cuts=(Cut(2, 0.5, "attention"), Cut(4, 0.0833, "grid"), Cut(6, 0)),
        model=ModelIdentity(8, "tiny", None, "llava", "Llava", "sha256:1"),
    )
    shape = DecoderShape(8, 64, 128, 4, 2, 16, 100, 4)
    return Plan(
        cuts=bare.cuts,
        model=bare.model,
        budget=ReachedBudget(0.4, 0.3958),
        loss=Loss({"colour": 0.01, "reading": 0.2}, {"colour": 0.3, "reading": 0.1}),
        cost=plan_cost(bare, shape, 144, 20, [(20, 1.0), (164, 3.0)]),
        provenance={"command": "tpcal plan --budget 0.4"},
    )


def _is_one_line(text: str) -> bool:
    return text.startswith("tpcal: ") and text.count("\n") == 1 and text.endswith(".\n")


def _process(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "80", **environ}
    return subprocess.run(
        [sys.executable, "-m", "tpcal", *args], capture_output=True, text=True, env=env, timeout=60
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from tpcal.cli import cli\n"
        f"try: cli({[command] if command else []!r} + ['--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"found = [m for m in {HEAVY} if m in sys.modules]; assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_schedules_are_read_without_torch(tmp_path: Path) -> None:
    lists = "layers=[8,16,24] keeps=[0.5,0.25,0.125]"
    schedules = "2:fastv:0.5,6:dart:0.3", lists, "K=2 R=50%"
    lines = [["convert", schedule, "--layers", "32"] for schedule in schedules]
    lines += [["show", f"preset:{name}{at}"] for name in presets() for at in ("", "@0.22")]
    code = (
        "import sys; from tpcal.cli import cli\n"
        f"for line in {lines!r}:\n"
        "    try: cli(line)\n"
        "    except SystemExit as end: assert end.code == 0, line\n"
        "    assert 'torch' not in sys.modules, line"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches_by_example_and_fits_80_columns(tpcal: Tpcal, command: str) -> None:
    result = tpcal(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"  tpcal {command}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_every_command_is_listed_in_the_order_of_work() -> None:
    assert tuple(cli.commands) == COMMANDS


def test_version(tpcal: Tpcal) -> None:
    assert tpcal("--version").stdout == f"tpcal {__version__}\n"


def test_no_command_shows_the_help(tpcal: Tpcal) -> None:
    result = tpcal()
    assert result.exit_code == 2
    assert "Usage: tpcal" in result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "--confidence", "0.9"], "--confidence must come with --max-flips"),
        (["plan", "--each-group"], "--each-group must come with --max-flips"),
        (["plan", "--budget", "1", "--certify-samples", "9"], "must come with --confidence"),
        (["plan", "--max-flips", "0", "--confidence", "0.9"], "must be above 0 and below 1 to be"),
        (
            ["plan", "--no-measure", "--max-flips", "0.1", "--confidence", "0.9"],
            "--confidence must run the model",
        ),
        (["plan", "--max-flips", "1.1"], "1.1 is not in the range"),
        (["plan", "--max-loss", "1", "--weight", "reading"], "must be GROUP=WEIGHT"),
        (["plan", "--max-loss", "1", "--weight", "reading=0"], "a weight above 0; got reading=0"),
        (["plan", "--budgte", "1"], MEANT),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["plan", "--budget", "0"], "above 0 and at most 1: 0.22, 22%"),
        (["plan", "--budget", "1.5"], "got 1.5"),
        (["plan", "--budget", "120%"], "got 120%"),
        (["plan", "--budget-kv", "2"], "got 2"),
        (["plan", "--budget-ms", "nan"], "finite"),
        (
            ["plan", "--budget", "0.2", "--budget-kv", "0.3"],
            "Only one of --budget, --budget-flops",
        ),
        (["plan", "--budget", "nan"], "got nan"),
        (["plan", "--budget", "lots"], "got lots"),
        (["calibrate", "--selectors", "grid,nrom"], "no selector is called that; known:"),
        (["calibrate", "--keeps", "0.5,1.5"], "'1.5': a keep must be at least 0 and below 1"),
        (["calibrate", "--keeps", "nan"], "'nan': a keep must be"),
        (["calibrate", "--layers", "-1"], "'-1': a layer must be a whole number"),
        (["calibrate", "--layers", "5-2"], "'5-2': a range must rise"),
        (["calibrate", "--layers", "0-999999999999999"], "a range"),
        (["calibrate", "--layers", ","], "the list must name something"),
        (["calibrate", "--samples", "0"], "0 is not in the range"),
        (["calibrate", "--merge", "sum"], "'sum' is not one of 'none', 'mean', 'proportional'"),
        (["calibrate", "--dtype", "int8"], "'int8' is not one of"),
        (["run"], "Missing argument 'QUESTION'"),
    ],
)
def test_wrong_options_are_one_line_and_exit_2(tpcal: Tpcal, args: list[str], said: str) -> None:
    result = tpcal(*args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert _is_one_line(result.stderr), result.stderr
    assert "--help' shows the options." in result.stderr


def test_check_accepts_a_plan(tpcal: Tpcal, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(GOOD)
    result = tpcal("check", "plan.yaml")
    assert (result.exit_code, result.stdout) == (0, "✓ plan.yaml is a well-formed plan: 2 cuts.\n")


def test_check_names_all_problems_one_a_line(tpcal: Tpcal, tmp_path: Path) -> None:
    bad = GOOD.replace("keep: 0.5, selector: grid", "keep: 1.5, selector: nrom")
    (tmp_path / "plan.yaml").write_text(bad.replace("layer: 5", "layer: 8") + "extra: 1\n")
    result = tpcal("check", "plan.yaml")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert all(line.startswith("tpcal: error: plan.yaml: ") for line in result.stderr.splitlines())


BAD_PLANS = {
    "empty": ("", "got an empty file"),
    "binary": (b"\x00\xff\xfe\x80", "UTF-8"),
    "not yaml": ("cuts: [", "plain YAML"),
    "a list": ("- 1\n", "must be a mapping"),
    "python tag": ("!!python/object/apply:os.system ['true']", "plain YAML"),
    "bomb": ("a: &a [1]\nb: [*a, *a]\n", "aliases are not allowed"),
    "deep": ("[" * 5000, "plain YAML"),
    "huge": ("#" * 2_000_000, "must be at most"),
    "other schema": ("schema: 99\n", "schema must be 1"),
    "keep rises": (GOOD.replace("keep: 0}", "keep: 0.9, selector: grid}"), "must not rise"),
    "layer out of range": (GOOD.replace("layer: 5", "layer: 8"), "below the model's 8 layers"),
    "layers fall": (GOOD.replace("layer: 5", "layer: 1"), "above the layer of the cut before"),
    "unknown selector": (GOOD.replace("grid", "nrom"), "no selector is called 'nrom'. Known:"),
    "not a number": (GOOD.replace("0.5", ".nan"), "cuts[0].keep must be a number"),
}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *(("check", kind) for kind in BAD_PLANS),
        ("show", "unknown selector"),
        ("eval --plan", "bomb"),
        ("run hello --image x --plan", "python tag"),
    ],
)
def test_bad_plans_end_with_one_line(
    tpcal: Tpcal, tmp_path: Path, kind: str, command: str
) -> None:
    content, said = BAD_PLANS[kind]
    (tmp_path / "bad.yaml").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    result = tpcal(*command.split(), "bad.yaml")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert _is_one_line(result.stderr), result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["check", "show", "eval --plan"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.yaml", "No plan at absent.yaml"),
        ("preset:nonsense", "No preset is called 'nonsense'. Known: btp-"),
    ],
)
def test_missing_plans_end_with_one_line(tpcal: Tpcal, command: str, name: str, said: str) -> None:
    result = tpcal(*command.split(), name)
    assert result.exit_code == 2
    assert said in result.stderr
    assert _is_one_line(result.stderr), result.stderr


def test_show_draws_a_bar_per_layer_and_the_cost(tpcal: Tpcal, tmp_path: Path, plan: Plan) -> None:
    save_plan(plan, tmp_path / "plan.yaml")
    out = tpcal("show", "plan.yaml").stdout
    assert "plan.yaml · for tiny · 8 layers · 3 cuts" in out
    rows = [line.split() for line in out.splitlines() if line.lstrip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [
        [str(i), str(n)] for i, n in enumerate([144, 144, 72, 72, 12, 12, 0, 0])
    ]
    assert [len(row[2]) if len(row) > 2 and "█" in row[2] else 0 for row in rows][:4] == [
        28,
        28,
        14,
        14,
    ]
    assert "keep 0.5 by attention" in out
    assert "drop all" in out
    for part in ("layer-average keep (budget 0.4)", "0.3958", "72 → 12 → 0", "prefill FLOPs"):
        assert part in out
    assert "KV cache" in out
    assert "ms" in out
    assert "Made by: tpcal plan --budget 0.4" in out
    assert max(map(len, out.splitlines())) <= 80


def test_show_says_what_becomes_of_tokens_that_leave(
    tpcal: Tpcal, tmp_path: Path, plan: Plan
) -> None:
    said = "Tokens that leave are merged into the kept ones that are most alike"
    for merge, end in (("mean", " (merge mean)."), ("proportional", " (merge proportional).")):
        save_plan(replace(plan, merge=merge), tmp_path / "plan.yaml")
        out = " ".join(tpcal("show", "plan.yaml").stdout.split())
        assert said in out
        assert end in out
        assert ("counts as often" in out) == (merge == "proportional")
    for other in (plan, Plan(merge="mean")):  # nothing is said of a plan without cuts
        save_plan(other, tmp_path / "plan.yaml")
        assert "merge" not in tpcal("show", "plan.yaml").stdout


def test_help_names_every_way_to_merge_and_its_price(tpcal: Tpcal) -> None:
    said = " ".join(tpcal("calibrate", "--help").stdout.split())
    assert "--merge [none|mean|proportional]" in said
    assert "it loses least, and vLLM cannot run it" in said
    assert "[default: none]" in said


@pytest.mark.parametrize("word", ["caf\udce9.yaml", "\x1b[2J"])
def test_names_that_no_file_could_hold_are_refused(tpcal: Tpcal, word: str) -> None:
    result = tpcal("show", word)
    assert result.exit_code == 2
    assert "must be Unicode text without escape characters" in " ".join(result.stderr.split())


def test_options_for_a_plan_file_need_a_budget(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", "--no-measure", "-o", "best.yaml")
    assert result.exit_code == 2
    assert "no plan is written" in " ".join(result.stderr.split())
    (tmp_path / "plan.yaml").write_text("something else")
    assert tpcal("plan", "--no-measure").exit_code == 0  # nothing is written, so nothing is lost


def test_json_and_a_picture_are_not_asked_for_at_once(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("front", "--json", "--svg", "front.svg")
    assert result.exit_code == 2
    assert "--svg cannot be given with it" in result.stderr


def test_odd_provenance_of_a_plan_is_no_reason_to_fail(
    tpcal: Tpcal, tmp_path: Path, plan: Plan
) -> None:
    odd = {"front": [1], "weights": [1]}
    for provenance in (odd, {"front": {"cheaper": [1], "dearer": {"loss": "x"}}}):
        save_plan(replace(plan, provenance=provenance), tmp_path / "plan.yaml")
        assert tpcal("show", "plan.yaml").exit_code == 0


def test_help_names_what_is_probed_by_default(tpcal: Tpcal) -> None:
    said = " ".join(tpcal("calibrate", "--help").stdout.split())
    assert f"[default: {', '.join(DEFAULT_SELECTORS)}]" in said
    assert f"[default: {', '.join(f'{keep:g}' for keep in DEFAULT_KEEPS)}]" in said


def test_show_marks_the_worst_measured_group(tpcal: Tpcal, tmp_path: Path, plan: Plan) -> None:
    save_plan(plan, tmp_path / "plan.yaml")
    lines = tpcal("show", "plan.yaml").stdout.splitlines()
    worst = [line.split()[0] for line in lines if "worst" in line]
    assert worst == ["colour"]  # predicted best, measured worst


def test_show_says_how_sure_a_measured_loss_is(tpcal: Tpcal, tmp_path: Path, plan: Plan) -> None:
    assert plan.loss is not None
    save_plan(plan, tmp_path / "old.yaml")
    sure = replace(plan.loss, margin={"colour": 0.0125})
    save_plan(replace(plan, loss=sure), tmp_path / "new.yaml")
    assert f"{plan.loss.measured['colour']:.4f} ± 0.0125" in tpcal("show", "new.yaml").stdout
    assert "±" not in tpcal("show", "old.yaml").stdout


def test_show_says_how_large_the_calibrated_prompts_were(
    tpcal: Tpcal, tmp_path: Path, plan: Plan
) -> None:
    sizes = {"n_visual": [[576, 9]], "n_images": [[1, 9]], "n_text": [[12, 9]]}
    for name, given in (("whole", sizes), ("damaged", {**sizes, "n_text": "few"})):
        kept = {**plan.provenance, "input_sizes": given}
        save_plan(replace(plan, provenance=kept), tmp_path / f"{name}.yaml")
    said = "Calibrated on 9 prompts of 576 to 639 visual tokens, 1 image and 12 text tokens"
    assert said in " ".join(tpcal("show", "whole.yaml").stdout.split())
    assert "Calibrated on" not in tpcal("show", "damaged.yaml").stdout


def test_show_says_whether_answers_or_tokens_changed(
    tpcal: Tpcal, tmp_path: Path, plan: Plan
) -> None:
    assert plan.loss is not None
    shares = {"colour": 0.01, "reading": 0.2}
    limited = replace(plan.loss, max_flips=0.3)
    save_plan(replace(plan, loss=replace(limited, changed=shares)), tmp_path / "new.yaml")
    save_plan(replace(plan, loss=replace(limited, flips=shares)), tmp_path / "old.yaml")
    new, old = (tpcal("show", f"{name}.yaml").stdout for name in ("new", "old"))
    assert "answers changed" in new
    assert "30 % of the answers may change" in " ".join(new.split())
    assert "tokens changed" in old
    assert "answers changed" not in old
    assert "30 % of the answer tokens may change" in " ".join(old.split())


def test_check_scales_a_preset_to_the_model(tpcal: Tpcal) -> None:
    assert (
        "preset:fastv is a plan that fits embedded"
        in tpcal("check", "preset:fastv", "--model", "embedded").stdout
    )


def test_show_scales_a_preset_and_joins_many_layers(tpcal: Tpcal) -> None:
    short = tpcal("show", "preset:vtw", "--layers", "8").stdout
    long = tpcal("show", "preset:vtw", "--layers", "60").stdout
    assert "Layer-average keep 0.5000" in short
    assert "30–59" in long


def _profile(folder: Path) -> None:
    """Two groups: colour looks at layers below 2, reading at layers below 4."""
    probes = [Probe(layer, keep, "grid") for layer in range(6) for keep in (0.5, 0.1)]
    probes += [Probe(layer, 0.5, "random") for layer in range(6)]
    probes += [Probe(layer, 0.0) for layer in range(6)]
    depth = np.array([2, 4, 2, 4])
    need = np.array([[max(d - p.layer, 0) for p in probes] for d in depth], np.float32)
    worse = np.array([1 + (p.selector == "random") - p.keep for p in probes], np.float32)
    layers = np.ones((4, 6), np.float32)
    profile = Profile(
        model=ModelIdentity(6, "tiny", None, "llava", "LlavaForConditionalGeneration", "sha256:1"),
        shape=DecoderShape(6, 64, 128, 4, 2, 16, 100, 4),
        n_tokens=144,
        n_text=20,
        groups=("colour", "reading"),
        sample_group=np.array([0, 1, 0, 1]),
        probes=tuple(probes),
        local=need * worse / 10,
        kl=need * worse,
        flips=need * worse / 8,
        turns=layers * 0.25,
        text_to_visual=layers * 0.5,
        visual_to_text=layers * 0,
        layer_ms=((20, 1.0), (164, 3.0)),
    )
    save(profile, folder)


def test_show_says_from_where_a_group_needs_no_image(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    out = tpcal("show", "tpcal-out").stdout
    assert "tpcal-out/tiny-1 · tiny · 6 layers" in out
    assert "4 samples, 2 groups, 24 probes, 144 visual and 20 text tokens" in out
    rows = {words[0]: words for line in out.splitlines() if (words := line.split())}
    assert rows["colour"][1] == "2"
    assert rows["reading"][1] == "4"
    assert rows["0"] == ["0", "1.5000", "2.7000", "3.0000", "25", "%", "50", "%", "0", "%"]
    assert "█" in rows["reading"][2]
    assert max(map(len, out.splitlines())) <= 80


def test_show_narrows_a_profile_to_a_group(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "p")
    profile = load(tmp_path / "p")
    turns = profile.turns * 0 + (profile.members("reading") * 0.75)[:, None]
    save(replace(profile, turns=turns), tmp_path / "p")
    out = tpcal("show", "p", "--group", "reading", "--measure", "flips").stdout
    assert "answers changed, best selector, reading" in out
    assert " 75 % " in out  # of turned tokens, too
    assert " 75 % " not in tpcal("show", "p", "--measure", "flips").stdout
    wrong = tpcal("show", "p", "--group", "smell")
    assert wrong.exit_code == 2
    assert "No group is called 'smell'" in wrong.stderr
    assert "colour, reading" in wrong.stderr


@pytest.mark.parametrize("option", ["--timeout", "--max-loss"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_limits_are_finite_numbers(tpcal: Tpcal, option: str, value: str) -> None:
    result = tpcal("plan", "--budget", "0.22", option, value)
    assert result.exit_code == 2
    assert value in result.stderr


def test_plan_predicts_without_the_model(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", "--budget", "0.4", "--no-measure")
    assert result.exit_code == 0, result.stderr
    assert "Next: tpcal eval --plan plan.yaml" in result.stdout
    plan = load_plan(tmp_path / "plan.yaml")
    assert plan.budget is not None
    assert plan.budget.reached == pytest.approx(0.4, abs=1 / 144)
    assert tpcal("check", "plan.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("option", "value", "kind", "line"),
    [
        ("--budget-flops", "0.4", "flops", "prefill FLOPs (budget 0.4)"),
        ("--budget-kv", "40%", "kv", "KV cache (budget 0.4)"),
        ("--budget-ms", "9", "ms", "prefill of the decoder (budget 9)"),
    ],
)
def test_budgets_can_be_of_flops_bytes_and_milliseconds(
    tpcal: Tpcal, tmp_path: Path, option: str, value: str, kind: str, line: str
) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", option, value, "--no-measure")
    assert result.exit_code == 0, result.stderr
    assert line in result.stdout
    plan = load_plan(tmp_path / "plan.yaml")
    assert plan.budget is not None
    assert plan.budget.kind == kind
    assert plan.budget.target * 0.9 < plan.budget.reached <= plan.budget.target
    assert tpcal("check", "plan.yaml").exit_code == 0


def test_plans_for_an_engine_say_what_they_cost_there(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", "--budget", "0.4", "--no-measure", "--engine", "vllm")
    assert result.exit_code == 0, result.stderr
    assert "In vLLM: stages of " in result.stdout
    plan = load_plan(tmp_path / "plan.yaml")
    assert plan.provenance["engine"] == "vllm"
    served = tpcal("check", "plan.yaml", "--engine", "vllm")
    assert served.exit_code == 0
    assert " is a well-formed plan and runs in vLLM: " in served.stdout


def test_a_budget_out_of_reach_exits_3_and_names_the_least(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", "--budget", "0.000001", "--no-measure")
    assert result.exit_code == 3
    assert "must be at least 0.0" in result.stderr
    assert _is_one_line(result.stderr)
    assert not (tmp_path / "plan.yaml").exists()


def test_a_plan_that_loses_too_much_exits_4_and_is_not_written(
    tpcal: Tpcal, tmp_path: Path
) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("plan", "--budget", "0.1", "--no-measure", "--max-loss", "0.000001")
    assert result.exit_code == 4
    assert not (tmp_path / "plan.yaml").exists()


def test_without_a_budget_a_limit_asks_for_the_cheapest_plan(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    costs = []
    for limit in ("0.5", "0.05"):
        result = tpcal("plan", "--max-loss", limit, "--no-measure")
        assert result.exit_code == 0, result.stderr
        assert f"at most {limit} nats were allowed." in result.stdout
        plan = load_plan(tmp_path / "plan.yaml")
        assert plan.cost is not None
        assert plan.loss is not None
        assert max(plan.loss.predicted.values()) <= float(limit)
        costs.append(plan.cost.layer_average_keep)
    assert costs[0] < costs[1] < 1
    assert "Limited by reading" in tpcal("show", "plan.yaml").stdout
    unpruned = tpcal("plan", "--max-flips", "0", "--no-measure")
    assert unpruned.exit_code == 0
    assert load_plan(tmp_path / "plan.yaml").cuts == ()


def test_a_share_of_changed_answers_guards_a_budget(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    few = ("plan", "--budget", "0.3", "--no-measure", "--max-flips", "0.01", "--each-group")
    result = tpcal(*few)
    assert result.exit_code == 4
    assert _is_one_line(result.stderr)
    assert "At most 0.01 of the answers must change; got" in result.stderr
    assert "(predicted) in reading" in result.stderr
    assert not (tmp_path / "plan.yaml").exists()


def test_weights_are_of_groups_there_are_and_named_where_they_decide(
    tpcal: Tpcal, tmp_path: Path
) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    command = ("plan", "--budget", "0.4", "--no-measure")
    wrong = tpcal(*command, "--weight", "smell=2")
    assert wrong.exit_code == 2
    assert "Weights must be of colour, reading; got smell" in wrong.stderr
    assert tpcal(*command, "--weight", "colour=100", "--weight", "reading=1").exit_code == 0
    assert load_plan(tmp_path / "plan.yaml").provenance["weights"] == {"colour": 100, "reading": 1}


def test_the_objective_is_chosen_by_name_and_kept(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    command = ("plan", "--budget", "0.4", "--no-measure")
    (option,) = (o for o in plan_command.params if o.name == "objective")
    assert set(option.type.choices) == set(WORST_SHARES)
    for name in WORST_SHARES:
        assert tpcal(*command, "--objective", name).exit_code == 0
        assert load_plan(tmp_path / "plan.yaml").provenance["objective"] == name


def test_plan_warns_once_of_samples_that_never_look_deep(tpcal: Tpcal, tmp_path: Path) -> None:
    folder = tmp_path / "tpcal-out" / "tiny-1"
    _profile(folder)
    deep = load(folder)
    save(replace(deep, kl=deep.kl * (np.arange(4) % 2 == 0)[:, None]), folder)
    command = ("plan", "--budget", "0.6", "--no-measure")
    warned = tpcal(*command).stderr
    assert warned.count("tpcal: warning: No group of the samples needs the image from") == 1
    assert _is_one_line(warned)


def test_plan_overwrites_plans_but_nothing_else(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    command = ("plan", "--budget", "0.4", "--no-measure")
    (tmp_path / "plan.yaml").write_text("shopping: [milk]\n")
    refused = tpcal(*command)
    assert refused.exit_code == 2
    assert "plan.yaml exists and is not a plan. Name another file" in refused.stderr
    assert (tmp_path / "plan.yaml").read_text() == "shopping: [milk]\n"
    assert tpcal(*command, "--force").exit_code == 0
    assert tpcal(*command).exit_code == 0


def _damage_arrays(folder: Path) -> None:
    (folder / "arrays.safetensors").write_bytes(b"x")


def _cut_short(folder: Path) -> None:
    text = (folder / "profile.yaml").read_text()
    (folder / "profile.yaml").write_text(text[: len(text) // 2])


def _empty(folder: Path) -> None:
    (folder / "profile.yaml").write_text("")


def test_the_front_is_predicted_before_the_first_search(tpcal: Tpcal, tmp_path: Path) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal("front")
    assert result.exit_code == 0, result.stderr
    assert "on the front, predicted" in result.stdout
    rows = re.findall(r"^ *([01]\.\d+) +(\d+\.\d+) ", result.stdout, re.MULTILINE)
    keeps, losses = [float(row[0]) for row in rows], [float(row[1]) for row in rows]
    assert len(keeps) > 3
    assert keeps == sorted(keeps)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


@pytest.mark.parametrize("command", ["show tpcal-out", "plan --budget 0.4 --no-measure"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_damage_arrays, "is damaged: arrays.safetensors"),
        (_cut_short, "profile.yaml"),
        (_empty, "got an empty file"),
    ],
)
def test_damaged_profiles_end_with_one_line(
    tpcal: Tpcal, tmp_path: Path, command: str, damage: Callable[[Path], None], said: str
) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    damage(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal(*command.split())
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert _is_one_line(result.stderr), result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["plan", "--budget", "0.4"],
        ["plan", "--budget", "0.4", "--profile", "nowhere"],
        ["show", "tpcal-out/profile.yaml"],
    ],
)
def test_no_profile_says_how_to_make_one(tpcal: Tpcal, args: list[str]) -> None:
    result = tpcal(*args)
    assert result.exit_code == 2
    assert "Make one with: tpcal calibrate." in result.stderr
    assert _is_one_line(result.stderr), result.stderr


def _printed(view: RenderableType) -> str:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(view)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def _results(evaluation: Evaluation) -> EvaluationResults:
    """The results of one plan, or of the unpruned model alone."""
    entry = Entry("plan.yaml", None, None, False, MeasuredCost(), evaluation)
    entries = () if evaluation.correct_plan is None else (entry,)
    n = len(evaluation.answers_unpruned)
    data = SampleFacts("embedded", "", None, n, evaluation.groups, n_seen=0)
    return EvaluationResults.of(Comparison(evaluation, entries, (), {}), ModelFacts("tiny"), data)


def _evaluation(answered: bool = True, plan: bool = True) -> Evaluation:
    after = np.array([True] * 7 + [False] * 13)
    before = np.array([True] * 10 + [False] * 10)
    return Evaluation(
        groups=("colour", "reading"),
        sample_group=np.array([0] * 5 + [1] * 15),
        answered=np.full(20, answered),
        correct_unpruned=before & answered,
        correct_plan=after & answered if plan else None,
        agree=before == after if plan else None,
        answers_unpruned=("x",) * 20,
        answers_plan=("x",) * 20 if plan else None,
    )


def test_an_evaluation_shows_intervals_and_the_worst_group() -> None:
    out = _printed(group_view(_results(_evaluation()), title="plan.yaml on embedded"))
    rows = {words[0]: line for line in out.splitlines() if (words := line.split())}
    assert "100 [57, 100]" in rows["colour"]
    assert "-20 [" in rows["reading"]
    assert " 50 [30, 70]" in rows["overall"]
    assert "The plan keeps 70.0 % of the accuracy." in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_large_evaluation_keeps_its_groups_names_whole() -> None:
    n = 1400
    right = np.arange(n) % 8 > 0
    evaluation = Evaluation(
        groups=("background", "where"),
        sample_group=np.arange(n) % 2,
        answered=np.full(n, True),
        correct_unpruned=np.full(n, True),
        correct_plan=right,
        agree=right,
        answers_unpruned=("x",) * n,
        answers_plan=("x",) * n,
    )
    lines = _printed(group_view(_results(evaluation), title="plan.yaml")).splitlines()
    assert any(line.startswith("background") for line in lines)
    assert any(line.startswith("overall") and "-12.5 [" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_an_evaluation_without_answers_shows_agreement() -> None:
    out = _printed(group_view(_results(_evaluation(answered=False)), title="x"))
    assert "same answer" in out
    assert "unpruned" not in out
    assert " 85 [" in out


def test_an_evaluation_without_a_plan_shows_the_model_alone() -> None:
    out = _printed(group_view(_results(_evaluation(plan=False)), title="x"))
    assert " 50 [30, 70]" in out
    assert "with plan" not in out


def test_presets_lists_depth_and_average_keep(tpcal: Tpcal) -> None:
    lines = tpcal("presets").stdout.splitlines()
    fastv = next(line.split() for line in lines if line.startswith("fastv "))
    assert fastv == ["fastv", "32", "0.5312", "2:0.5"]
    assert max(map(len, lines)) <= 80


def test_selectors_lists_what_they_keep(tpcal: Tpcal) -> None:
    out = tpcal("selectors").stdout
    assert "evenly spread" in out
    assert "seed 0" in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("Too small.", 0.1), 3),
        (GuardrailError("Loses too much."), 4),
        (FitError("plan.yaml", ["made for 8 layers.", "another family."]), 5),
        (SlowerError("Slower."), 6),
        (MemoryError(), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"), 1),
        (PermissionError(13, "Permission denied", "plan.yaml"), 1),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(error: BaseException, code: int) -> None:
    group = _group_that_raises(error)
    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert all(line.startswith("tpcal: ") for line in result.stderr.splitlines())


def test_out_of_memory_says_what_to_do() -> None:
    result = CliRunner().invoke(_group_that_raises(MemoryError()), ["fail"])
    assert "use a smaller --batch-size" in result.stderr


def test_an_interruption_says_whether_anything_is_kept() -> None:
    resumable = _group_that_raises(KeyboardInterrupt(), resumable=["fail"])
    kept = CliRunner().invoke(resumable, ["fail"]).stderr
    lost = CliRunner().invoke(_group_that_raises(KeyboardInterrupt()), ["fail"]).stderr
    assert kept == "tpcal: Interrupted; run the same command again to continue.\n"
    with_nothing_kept = CliRunner().invoke(resumable, ["fail", "--no-keep"]).stderr
    assert with_nothing_kept == lost
    assert lost == "tpcal: Interrupted; no result was written.\n"


def test_the_traceback_is_one_switch_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPCAL_DEBUG", "1")
    result = CliRunner().invoke(_group_that_raises(ZeroDivisionError("x")), ["fail"])
    assert "Traceback" in result.stderr
    assert result.exit_code == 1


def _group_that_raises(error: BaseException, resumable: list[str] | None = None) -> Commands:
    @click.group(cls=Commands, resumable=resumable or [])
    def group() -> None:
        pass

    @group.command()
    @click.option("--no-keep", is_flag=True)
    def fail(no_keep: bool) -> None:
        raise error

    assert isinstance(group, Commands)
    return group


def test_provenance_names_no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", f"--profile={tmp_path}/out/a b", "-o", "/home/me/x.yaml", "--budget", "0.2"]
    shown = short_command(words, {"HOME": "/home/me"})
    assert shown == "tpcal plan '--profile=out/a b' -o '~/x.yaml' --budget 0.2"


def test_provenance_holds_no_credential_and_no_folder_of_the_machine() -> None:
    words = [
        "plan",
        "--storage",
        "postgresql://me:a'@s3 cret@db.example/x",
        "--data=/data/x/c.csv",
    ]
    shown = short_command(words, {"HOME": "/home/me"})
    assert "s3" not in shown
    assert "cret" not in shown
    assert "/data" not in shown
    assert re.search(r"--storage 'postgresql://me:\*\*\*@db.example/x' '--data=\[\w{8}\]/c", shown)


SECRET_URLS = (
    "nosuch://me:s3cret@localhost/db",
    "postgresql+psycopg://me:x@s3cret:y@localhost/db",
    "nosuch://localhost/db?password=s3cret",
    "postgresql:me:s3cret@localhost/db",
)


@pytest.mark.parametrize("url", SECRET_URLS)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(
    "command", [("plan", "--budget", "0.4"), ("front",), ("report", "--samples=0")]
)
def test_no_password_of_a_storage_reaches_the_screen_or_a_file(
    tpcal: Tpcal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    debug: list[str],
    url: str,
) -> None:
    monkeypatch.setattr("tpcal.planner.search.storage.time.sleep", lambda seconds: None)
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal(*debug, *command, "--storage", url)
    assert result.exit_code == 2
    assert "s3cret" not in result.output
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"s3cret" in f.read_bytes()]
    assert not [f for f in tmp_path.rglob("*") if "s3cret" in f.name]


@pytest.mark.filterwarnings("ignore:Query string argument")
def test_a_search_in_a_database_leaves_its_password_in_no_file(
    tpcal: Tpcal, tmp_path: Path
) -> None:
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    url = f"sqlite:///{tmp_path}/study.db?password=s3cret"
    for command in (
        ("plan", "--budget", "0.4", "--no-measure"),
        ("show", "plan.yaml"),
        ("report", "--samples", "0"),
        ("front", "--svg", "front.svg"),
    ):
        more = () if command[0] == "show" else ("--storage", url)
        result = tpcal(*command, *more)
        assert result.exit_code == 0, result.output
        assert "s3cret" not in result.output
    assert "?password=***" in load_plan(tmp_path / "plan.yaml").provenance["command"]
    files = {f.name: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert {"plan.yaml", "report.html", "front.svg"} <= set(files)
    assert not [name for name, content in files.items() if b"s3cret" in content]


def test_a_password_in_an_older_plan_goes_no_further(tpcal: Tpcal, plan: Plan) -> None:
    command = "tpcal plan --storage postgresql://me:s3cret@localhost/db"
    old = replace(plan, provenance={**plan.provenance, "command": command})
    save_plan(old, "old.yaml")
    assert "s3cret" not in tpcal("show", "old.yaml").output


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_repeats_no_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, debug: list[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-of-a-new-kind")
    monkeypatch.setenv("TPCAL_DEBUG", "1" if debug else "")
    error = RuntimeError("401 for header b'Bearer hf-of-a-new-kind' and hf_abcdefghijklmnopqrst")
    error.__cause__ = ValueError("hf-of-a-new-kind again")
    result = CliRunner().invoke(_group_that_raises(error), ["fail"])
    assert "401 for header" in result.stderr
    assert ("Traceback" in result.stderr) == bool(debug)
    assert "hf-of" not in result.stderr
    assert "hf_abc" not in result.stderr


def test_logs_and_warnings_of_libraries_show_no_secret() -> None:
    code = (
        "import logging, warnings, os; from tpcal import terminal; terminal.keep_secrets()\n"
        "log = logging.getLogger('lib'); log.warning('with %s', 'hf-of-a-new-kind')\n"
        "try: raise ValueError('hf-of-a-new-kind')\n"
        "except ValueError: log.exception('see')\n"
        "warnings.warn('hf-of-a-new-kind')\n"
        "terminal.warn('hf-of-a-new-kind')\n"
    )
    environ = {**os.environ, "HF_TOKEN": "hf-of-a-new-kind"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("***") == 4
    shown = [line for line in done.stderr.splitlines() if "hf-of" in line]
    assert all("warnings.warn(" in line for line in shown)  # the source, which names it itself


def test_log_records_keep_arguments_for_formatters_that_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-of-a-new-kind")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored at the end
    before = logging.getLogRecordFactory()
    try:
        keep_secrets()
        make = logging.getLogRecordFactory()
        words = ("127.0.0.1", "GET", "/health?token=hf-of-a-new-kind", "1.1", 200)
        record = make("uvicorn.access", 20, "", 1, '%s - "%s %s HTTP/%s" %d', words, None)
        assert isinstance(record.args, tuple)
        assert (record.args[0], record.args[4]) == ("127.0.0.1", 200)
        assert "hf-of" not in f"{record.args} {record.getMessage()}"
        whole = make("lib", 20, "", 1, "%s", (ValueError("hf-of-a-new-kind"),), None)
        assert "hf-of" not in whole.getMessage()
    finally:
        logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--plan", "plan.yaml", "hello"),
        ("certify", "plan.yaml"),
        ("eval", "--plan", "plan.yaml"),
        ("bench", "--plan", "plan.yaml"),
        ("plan", "--budget", "0.4"),
        ("report",),
        ("calibrate",),
        ("check", "plan.yaml"),
    ],
)
def test_code_is_trusted_only_of_a_model_that_the_user_names(
    tpcal: Tpcal, plan: Plan, tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert plan.model is not None
    save_plan(replace(plan, model=replace(plan.model, name="evil/model")), "plan.yaml")
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    result = tpcal(*command, "--trust-remote-code")
    assert result.exit_code == 2
    assert "--trust-remote-code must come with --model" in result.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("certify", "good.yaml"), "out.yaml"),
        (("plan", "--budget", "0.4", "--no-measure"), "out.yaml"),
        (("convert", "2:fastv:0.5", "--layers", "8"), "out.yaml"),
        (("report", "--samples", "0"), "out.html"),
        (("eval",), "out.json"),
        (("bench", "--plan", "good.yaml"), "out.md"),
        (("show", "good.yaml"), "out.svg"),
        (("front",), "out.svg"),
    ],
)
def test_nothing_but_what_tpcal_made_is_overwritten_and_folders_must_be_there(
    tpcal: Tpcal, tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    _profile(tmp_path / "tpcal-out" / "tiny-1")
    option = "--svg" if name.endswith("svg") else "-o"
    (tmp_path / name).write_text("shopping: [milk]\n")
    refused = tpcal(*command, option, name)
    assert refused.exit_code == 2
    assert f"{name} exists and " in refused.stderr
    assert "add --force" in refused.stderr
    assert (tmp_path / name).read_text() == "shopping: [milk]\n"
    nowhere = tpcal(*command, option, f"none/{name}")
    assert nowhere.exit_code == 2
    assert f"The folder of none/{name} must exist" in nowhere.stderr
    assert not (tmp_path / "none").exists()
    os.mkfifo(tmp_path / f"pipe-{name}")
    pipe = tpcal(*command, option, f"pipe-{name}", "--force")
    assert pipe.exit_code == 2
    assert "must be a file" in pipe.stderr
    if command[0] in ("convert", "show"):
        for more in (["--force"], []):
            assert tpcal(*command, option, name, *more).exit_code == 0


def test_colours_are_for_terminals_only() -> None:
    done = _process("show", "preset:fastv")
    assert "\x1b" not in done.stdout
    assert "\x1b" in _process("show", "preset:fastv", FORCE_COLOR="1").stdout
    plain = _process("show", "preset:fastv", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "\x1b[36m" not in plain


def test_charts_survive_an_ascii_terminal() -> None:
    done = _process("show", "preset:fastv", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "#####" in done.stdout
    assert done.stdout.isascii()


def test_a_closed_pipe_is_quiet() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tpcal", "presets"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_sigint_ends_with_130() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it\n"
        "from tpcal import cli\nfrom tpcal.commands import check\n"
        "check.load_plan = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['tpcal', 'check', 'x']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "tpcal: Interrupted; no result was written.\n"


@pytest.mark.parametrize("module", ["click", "tpcal.terminal", "tpcal.commands.report"])
def test_sigint_while_modules_load_leaves_no_traceback(module: str) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.argv = ['tpcal', 'presets']\n"
        "from tpcal.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "tpcal: Interrupted.\n"


def test_the_program_starts_where_an_interruption_is_caught() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"tpcal": "tpcal.__main__:main"}


def test_show_draws_into_a_picture(tpcal: Tpcal, tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    assert tpcal("show", "preset:fastv", "--layers", "8", "--svg", str(picture)).stdout == ""
    text = picture.read_text()
    assert text.startswith("<svg")
    assert "https://" not in text.replace("https://www.textualize.io", "")
    assert "attention" in text


def test_another_tools_schedule_becomes_a_plan_file(tpcal: Tpcal) -> None:
    done = tpcal("convert", "2:fastv:0.5,6:pdrop:0.3", "--layers", "8", "-o", "two.yaml")
    assert done.exit_code == 0, done.output
    assert "keep 0.15 by attention" in done.stdout
    assert "Next: tpcal check two.yaml\n" in done.stdout
    assert load_plan("two.yaml").cuts == (Cut(2, 0.5, "attention"), Cut(6, 0.15, "attention"))
    refused = tpcal("convert", "2:fitprune:0.5", "--layers", "8")
    assert refused.exit_code == 2
    assert _is_one_line(refused.stderr)
    assert "No selector is known as 'fitprune'. Known: attention" in refused.stderr


def test_a_published_schedule_is_shown_on_any_budget(tpcal: Tpcal) -> None:
    at = tpcal("show", "preset:dart-128@22%", "--layers", "32", "--tokens", "576")
    assert "preset:dart-128@22% · dart-128@0.22 · 32 layers" in at.stdout
    assert "2:0.2292 became 2:0.1667" in " ".join(at.stdout.split())
    dear = tpcal("show", "preset:fastv@0.1", "--layers", "8")
    assert dear.exit_code == 3
    assert "at least 0.1266 on 8 layers" in dear.stderr
