"""What plans of a profile are measured on: the profile's weights, and samples that no proof uses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tpcal
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample_digests import unpack
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.profile import DRAWN
from tpcal.plans.errors import FitError, GuardrailError, UsageError
from tpcal.plans.plan_records import OWN
from tpcal.plans.progress import silent
from tpcal.workflow.session import Drawn, PlanningSession
from tpcal.workflow.step_settings import PlanLimits

SETTINGS = tpcal.PlanningSettings(n_trials=2)
SMALL: dict[str, Any] = {
    "data": tpcal.DataChoice(samples=14),
    "settings": tpcal.CalibrationSettings(("grid",), keeps=(0.5, 0.0), layers=(0, 4)),
}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return ModelChoice().load()


@pytest.fixture
def stored(tmp_path: Path, loaded: Loaded) -> tpcal.StoredProfile:
    return tpcal.make_profile(model=loaded, out=tmp_path, **SMALL)


def test_other_weights_of_the_same_structure_are_refused(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    tuned = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        next(tuned.model.parameters()).mul_(1.5)
    with pytest.raises(FitError, match=r"measured on other weights .* Calibrate this model"):
        tpcal.find_plan(stored, 0.3, model=tuned, settings=SETTINGS)
    assert tpcal.find_plan(stored, 0.3, model=loaded, settings=SETTINGS).plan.loss.measured


def test_another_precision_than_the_profiles_is_refused_before_any_search(
    stored: tpcal.StoredProfile,
) -> None:
    with pytest.raises(UsageError, match=r"--dtype must be float32, in which .* got bfloat16"):
        tpcal.find_plan(stored, 0.3, model=ModelChoice(dtype="bfloat16"), settings=SETTINGS)


def test_a_profile_of_another_precision_is_planned_in_that_one(tmp_path: Path) -> None:
    half = ModelChoice(dtype="bfloat16")
    stored = tpcal.make_profile(model=half, out=tmp_path, **SMALL)
    found = tpcal.find_plan(stored, 0.3, settings=SETTINGS)
    assert found.session.loaded.model.dtype == torch.bfloat16
    assert found.plan.loss.measured
    found.save(tmp_path / "plan.yaml")
    for given, dtype in ((None, torch.bfloat16), (ModelChoice(dtype="float32"), torch.float32)):
        judged = tpcal.evaluate(
            tmp_path / "plan.yaml",
            model=given,
            data=tpcal.DataChoice(samples=2),
            settings=tpcal.EvaluationSettings(out=None),
        )
        assert judged.loaded.model.dtype == dtype


def test_a_model_is_not_named_where_nothing_is_measured(stored: tpcal.StoredProfile) -> None:
    settings = tpcal.PlanningSettings(measure=False)
    for given in ({"model": "no/such"}, {"settings": replace(settings, data="no.csv")}):
        with pytest.raises(UsageError, match="--model and --data are used only if plans are"):
            tpcal.find_plan(stored, 0.3, **{"settings": settings, **given})


def test_a_proof_leaves_out_the_samples_of_earlier_searches(
    stored: tpcal.StoredProfile, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = PlanningSession(stored, ModelChoice.of(loaded), replace(SETTINGS, samples=28), silent)
    few = PlanningSession(stored, ModelChoice.of(loaded), SETTINGS, silent)
    drawn = many.samples[1].part(0, 14)  # of which the smaller search draws only some
    assert len(many.drawn[0].sample_group) > len(few.drawn[0].sample_group)
    monkeypatch.setattr(DataChoice, "load", lambda self, role: drawn)
    with pytest.raises(UsageError, match="Samples must be new; got 14"):
        few.unseen(None, 14)


def test_finals_have_samples_that_the_profile_has_not(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    few = PlanningSession(stored, ModelChoice.of(loaded), replace(SETTINGS, samples=7), silent)
    search, finals = few.samples
    calibrated = unpack(stored.profile.provenance["data"]["seen"])
    assert set(search.identities) < calibrated
    assert len(finals) == 14
    assert not calibrated & set(finals.identities)


def test_further_samples_are_known_by_their_answers_too(
    stored: tpcal.StoredProfile, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn() -> tuple[Drawn, Drawn]:
        stored.folder.joinpath(DRAWN).unlink(missing_ok=True)
        return PlanningSession(stored, ModelChoice.of(loaded), SETTINGS, silent).drawn

    load, before = DataChoice.load, drawn()

    def corrected(choice: DataChoice, role: str) -> Samples:
        samples = load(choice, role)
        last = replace(samples[-1], answer="corrected")
        return samples if len(samples) == 14 else Samples.of([*samples[:-1], last])

    monkeypatch.setattr(DataChoice, "load", corrected)
    after = drawn()
    assert before[0] == after[0]
    assert before[1].seen == after[1].seen
    assert before[1].fingerprint != after[1].fingerprint


def test_a_limit_holds_where_further_samples_have_other_groups(
    stored: tpcal.StoredProfile, loaded: Loaded, tmp_path: Path
) -> None:
    few = tpcal.make_profile(
        model=loaded, out=tmp_path / "few", **{**SMALL, "data": tpcal.DataChoice(samples=5)}
    )
    limits = tpcal.PlanLimits(max_flips=1.0)
    plan = tpcal.find_plan(few, 0.3, model=loaded, limits=limits, settings=SETTINGS).plan
    assert len(plan.loss.measured) > len(plan.loss.predicted) == 5


def test_a_profile_made_inside_another_ones_folder_is_the_one_returned(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    few = {**SMALL, "data": tpcal.DataChoice(samples=5)}
    inner = tpcal.make_profile(model=loaded, out=stored.folder, **few)
    assert inner.folder.parent == stored.folder
    assert tpcal.load_profile(inner.folder).profile.digest == inner.profile.digest


def test_small_data_says_that_it_has_no_further_samples(
    stored: tpcal.StoredProfile, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcal.calibrate.measure.n_of_finals", lambda *given: 0)
    found = tpcal.find_plan(stored, 0.3, settings=SETTINGS)
    assert found.plan.provenance["measured_on"] == OWN
    assert "There are no further samples for the best plans" in caplog.text


def test_a_plan_names_the_samples_of_earlier_searches_too(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    def seen(settings: tpcal.PlanningSettings) -> frozenset[bytes]:
        plan = tpcal.find_plan(stored, 0.3, model=loaded, settings=settings).plan
        return unpack(plan.provenance["data"]["seen"])

    of_many = seen(replace(SETTINGS, samples=28))
    assert of_many <= seen(SETTINGS)


def test_a_limit_is_met_by_what_was_measured_and_not_by_a_prediction(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    limits = PlanLimits(max_loss=10.0)
    in_no_time = replace(SETTINGS, timeout=1e-6)
    with (
        pytest.warns(UserWarning, match="--timeout"),
        pytest.raises(GuardrailError, match="no plan was measured in time. Raise --timeout"),
    ):
        tpcal.find_plan(stored, 0.3, limits=limits, model=loaded, settings=in_no_time)
    found = tpcal.find_plan(stored, 0.3, limits=limits, model=loaded, settings=SETTINGS)
    assert found.plan.loss.measured
