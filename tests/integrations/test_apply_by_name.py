"""`tpcal.apply` with the name of a plan, and with the plan beside the model's weights."""

from __future__ import annotations

from pathlib import Path

import pytest

import tpcal
from tpcal.calibrate.inputs.models import Loaded
from tpcal.plans.errors import UsageError
from tpcal.plans.plan_file import load_plan


def test_a_plan_is_applied_by_its_name(loaded: Loaded, plan_file: str) -> None:
    with tpcal.apply(loaded.model, plan_file) as handle:
        assert handle.plan == load_plan(plan_file)
    with tpcal.apply(loaded.model, "preset:dart@0.22") as handle:
        assert handle.plan.budget is not None
        assert handle.plan.budget.reached <= 0.22
        assert handle.plan.model is not None
        assert handle.plan.model.n_layers == 8


def test_the_plan_beside_the_weights_is_applied(
    loaded: Loaded, plan_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model.config, "_name_or_path", str(tmp_path))
    with pytest.raises(UsageError, match=r"got a folder without tpcal_plan\.yaml"):
        tpcal.apply(loaded.model)
    plan = load_plan(plan_file)
    plan.save_pretrained(tmp_path)
    with tpcal.apply(loaded.model) as handle:
        assert handle.plan == plan
    monkeypatch.setattr(loaded.model.config, "_name_or_path", "")
    with pytest.raises(UsageError, match="this model was made in memory"):
        tpcal.apply(loaded.model)


def test_the_plan_is_taken_at_the_revision_of_the_weights(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(*place: object) -> Path:
        asked.append(place)
        raise UsageError("Not today.")

    monkeypatch.setattr("tpcal.plans.hub.download", download)
    monkeypatch.setattr(loaded.model.config, "_name_or_path", "org/model")
    monkeypatch.setattr(loaded.model.config, "_commit_hash", "a1b2", raising=False)
    with pytest.raises(UsageError, match=r"No plan at org/model, .*Not today\."):
        tpcal.apply(loaded.model)
    assert asked == [("org/model", "tpcal_plan.yaml", "a1b2")]
