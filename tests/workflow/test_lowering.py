"""`tpcal lower` on the built-in model: the best plan of the same cost for another engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import tpcal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.measure import Measurer
from tpcal.cli import cli
from tpcal.planner.search.trials import measure_all
from tpcal.plans.engines import EMBEDDINGS
from tpcal.plans.errors import BudgetError, FitError, UsageError
from tpcal.plans.plan_records import Cut, ModelIdentity, Plan, ReachedBudget

DEEP = Plan(cuts=(Cut(2, 0.5, "diversity"), Cut(4, 0.0)), name="deep")
"""144, 144, 72, 72 and no tokens in 8 layers of the built-in model: a layer average of 0.375."""
PREDICTED = tpcal.PlanningSettings(measure=False)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return ModelChoice().load()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, loaded: Loaded) -> Path:
    """A folder with a small profile and the plan `DEEP` in ``deep.yaml``."""
    folder = tmp_path_factory.mktemp("lowered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        tpcal.make_profile(
            model=loaded,
            data=tpcal.DataChoice(samples=14),
            out=folder / "tpcal-out",
            settings=tpcal.CalibrationSettings(
                ("grid", "diversity"), keeps=(0.5, 0.25, 0.0), layers=(0, 4)
            ),
        )
    tpcal.save_plan(DEEP, folder / "deep.yaml")
    return folder


def test_both_plans_are_measured_at_one_cost_on_the_same_samples(
    made: Path, loaded: Loaded
) -> None:
    settings = tpcal.PlanningSettings(n_trials=3)
    rounded = replace(DEEP, cuts=(Cut(2, 0.4, "diversity"), Cut(4, 0.0)), round_to=72)
    found = tpcal.lower(
        rounded, "embeddings", profile=made / "tpcal-out", model=loaded, settings=settings
    )
    (cut,) = found.plan.cuts
    assert (cut.layer, found.plan.scope) == (0, "image")
    assert found.plan.cost.counts == (50,)  # (144 + 144 + 57 + 57) / 8 tokens, rounded down
    assert found.original.cost.counts == (72, 0)
    samples = found.found.session.samples[1]
    for plan in (found.original, found.plan):
        own = Measurer(loaded, samples, like=plan)
        assert plan.loss.measured == pytest.approx(measure_all(own, plan.cuts).measured, abs=1e-5)
        assert plan.loss.changed
    saved = found.save(made / "lowered.yaml")
    assert saved.loss == found.plan.loss
    assert saved.provenance["lowered_from"] == rounded.digest
    assert saved.provenance["engine"] == "embeddings"
    assert EMBEDDINGS.plan_problems(tpcal.load_plan(made / "lowered.yaml")) == []


def test_the_command_writes_the_plan_and_states_what_is_lost(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    monkeypatch.setattr(ModelChoice, "load", None)
    refused = CliRunner().invoke(cli, ["check", "deep.yaml", "--engine", "embeddings"])
    assert refused.exit_code == 5
    assert "cuts[1].layer must be 0, because an engine that takes" in " ".join(
        refused.stderr.split()
    )
    words = ["lower", "deep.yaml", "--engine", "embeddings", "--no-measure", "-o", "low.yaml"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    lowered = tpcal.lower("deep.yaml", "embeddings", settings=PREDICTED)
    worst = [max(p.loss.predicted.values()) for p in (lowered.original, lowered.plan)]
    rows = {line.split()[0] for line in result.output.splitlines() if line.strip()}
    assert set(lowered.plan.loss.predicted) <= rows  # every group is named
    told = f"Predicted: the worst group loses {worst[1]:.4f} nats instead of {worst[0]:.4f}."
    assert told in " ".join(result.output.split())
    assert tpcal.load_plan("low.yaml").cuts == lowered.plan.cuts
    passed = CliRunner().invoke(cli, ["check", "low.yaml", "--engine", "embeddings"])
    assert passed.exit_code == 0, passed.output


def test_the_budget_is_in_the_unit_of_the_plan_s_own(made: Path) -> None:
    plan = replace(DEEP, budget=ReachedBudget(0.5, 0.5, "kv"))
    lowered = tpcal.lower(plan, "embeddings", profile=made / "tpcal-out", settings=PREDICTED)
    cost, full = lowered.plan.cost, lowered.original.cost
    assert lowered.plan.budget.kind == "kv"
    assert 0.98 < cost.kv_bytes / full.kv_bytes <= 1


def test_another_engine_s_rules_hold(made: Path) -> None:
    attention = replace(DEEP, cuts=(Cut(2, 0.5, "visionzip"),))
    lowered = tpcal.lower(attention, "vllm", profile=made / "tpcal-out", settings=PREDICTED)
    assert lowered.plan.provenance["engine"] == "vllm"
    assert {cut.selector for cut in lowered.plan.cuts} <= {"diversity", "grid", None}


def test_a_plan_that_only_merges_in_another_way_needs_to_be_lowered(
    made: Path, loaded: Loaded
) -> None:
    merged = Plan(cuts=(Cut(0, 0.5, "diversity"),), merge="proportional", name="merged")
    found = tpcal.lower(
        merged, "embeddings", profile=made / "tpcal-out", model=loaded, settings=PREDICTED
    )
    assert found.plan.merge is None


def test_plans_that_need_not_or_cannot_be_lowered_are_refused(made: Path) -> None:
    def lower(plan: Plan | str, engine: str = "embeddings") -> None:
        tpcal.lower(plan, engine, profile=made / "tpcal-out", settings=PREDICTED)

    with pytest.raises(UsageError, match="The plan runs there as it is"):
        lower(Plan(cuts=(Cut(0, 0.5, "grid"),)))
    with pytest.raises(UsageError, match="An engine must be one of vllm, embeddings; got sglang"):
        lower(DEEP, "sglang")
    with pytest.raises(FitError, match="made for another structure than embedded's"):
        lower(replace(DEEP, model=ModelIdentity(8, fingerprint="sha256:0")))
    with pytest.raises(FitError, match="made for another structure"):
        lower(Plan(cuts=(Cut(8, 0.0),)))
    with pytest.raises(BudgetError, match=r"budget must be at least 0\.25"):
        lower(Plan(cuts=(Cut(1, 0.0),)))
    lower("preset:fastv")
