from __future__ import annotations

import ast
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import tpcal
from tpcal.calibrate.embedded import samples
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import UsageError
from tpcal.workflow.step_settings import PlanLimits

ROOT = Path(tpcal.__file__).parent
EXAMPLE = ROOT / "examples" / "python_path.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example ran."""
    folder = tmp_path_factory.mktemp("python_path")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        runpy.run_path(str(EXAMPLE))["main"]()
    return folder


def test_the_example_calibrates_searches_evaluates_and_certifies(made: Path) -> None:
    plan = tpcal.load_plan(made / "plan.yaml")
    assert plan.cost is not None
    assert plan.cost.layer_average_keep <= 0.5
    assert plan.certificate is not None
    assert (plan.certificate.n, plan.certificate.max_flips) == (28, 0.5)
    assert plan.provenance["n_trials"] == 4
    stored = tpcal.load_profile(made / "tpcal-out")
    assert plan.provenance["profile"] == stored.profile.digest
    assert stored.study.exists()


def test_programs_are_refused_samples_that_a_plan_was_made_from(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    seen = tpcal.DataChoice(samples=14, split="calibration")
    model = ModelChoice.of(tpcal.ModelChoice().load())
    none = tpcal.EvaluationSettings(out=None)
    with pytest.raises(UsageError, match="an evaluation must be new; got 14 of 14"):
        tpcal.evaluate("plan.yaml", model=model, data=seen, settings=none)
    with pytest.raises(UsageError, match="a proof must be new; got 14 of 14"):
        tpcal.certify("plan.yaml", tpcal.Promise(0.5, 0.9), model=model, data=seen)


def test_a_monitor_compares_requests_with_the_inputs_that_the_plan_was_made_from(
    made: Path,
) -> None:
    loaded = tpcal.ModelChoice().load()
    served, two = [], []
    for sample in samples("eval", 40):
        text = f"{sample.question} ASSISTANT:"
        ask = partial(loaded.processor, return_tensors="pt")
        served.append(ask(sample.image, f"USER: <image> {text}"))
        two.append(ask([sample.image] * 2, f"USER: <image> <image> {text}"))
    settings = tpcal.MonitorSettings(limit=0.5, share=0.01)
    kinds = []
    with tpcal.apply(loaded.model, tpcal.load_plan(made / "plan.yaml")) as handle:
        for requests in (served, two[:16]):
            with tpcal.Monitor(loaded.model, loaded.processor, handle, settings) as monitor:
                for inputs in requests:
                    monitor.generate(inputs, max_new_tokens=1)
            kinds.append({alarm.kind for alarm in monitor.state.alarms})
    assert kinds[0] == set()
    assert {"n_visual", "n_images"} <= kinds[1]


def test_a_prediction_needs_neither_model_nor_samples_and_writes_nothing_by_itself(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelChoice, "load", None)
    predict = tpcal.PlanningSettings(measure=False)
    found = tpcal.find_plan(made / "tpcal-out", 0.4, settings=predict)
    assert not list(tmp_path.iterdir())
    assert found.save(tmp_path / "plan.yaml") == tpcal.load_plan(tmp_path / "plan.yaml")
    front = tpcal.find_front(found.stored, settings=predict)
    assert len(front.points) > 1


def test_a_search_without_budget_and_limit_is_refused(made: Path) -> None:
    with pytest.raises(UsageError, match="got neither. tpcal.find_front searches all budgets"):
        tpcal.find_plan(made / "tpcal-out")
    proven = PlanLimits(max_flips=0.1, confidence=0.9)
    predict = tpcal.PlanningSettings(measure=False)
    with pytest.raises(UsageError, match="must run the model"):
        tpcal.find_plan(made / "tpcal-out", limits=proven, settings=predict)
    with pytest.raises(UsageError, match="must come with"):
        replace(proven, max_flips=None).check()


def test_the_workflow_imports_neither_click_nor_rich_nor_options() -> None:
    found = []
    for path in (ROOT / "workflow").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, n) for n in names if n.startswith(("click", "rich"))]
            found += [
                (path.name, n) for n in names if n.startswith(("tpcal.options", "tpcal.terminal"))
            ]
    assert not found
