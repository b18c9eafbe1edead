"""What plans of a profile are measured on: the profile's weights, and samples that no proof uses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tpcal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample_digests import unpack
from tpcal.plans.errors import FitError

SETTINGS = tpcal.PlanningSettings(n_trials=2)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return ModelChoice().load()


@pytest.fixture
def stored(tmp_path: Path, loaded: Loaded) -> tpcal.StoredProfile:
    return tpcal.make_profile(
        model=loaded,
        data=tpcal.DataChoice(samples=14),
        out=tmp_path,
        settings=tpcal.CalibrationSettings(("grid",), keeps=(0.5, 0.0), layers=(0, 4)),
    )


def test_other_weights_of_the_same_structure_are_refused(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    tuned = replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        next(tuned.model.parameters()).mul_(1.5)
    with pytest.raises(FitError, match=r"measured on other weights .* Calibrate this model"):
        tpcal.find_plan(stored, 0.3, model=tuned, settings=SETTINGS)
    assert tpcal.find_plan(stored, 0.3, model=loaded, settings=SETTINGS).plan.loss.measured


def test_the_same_weights_in_another_precision_are_not(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    half = replace(loaded, model=copy.deepcopy(loaded.model).to(torch.bfloat16))
    assert tpcal.find_plan(stored, 0.3, model=half, settings=SETTINGS).plan.loss.measured


def test_a_plan_names_the_samples_of_earlier_searches_too(
    stored: tpcal.StoredProfile, loaded: Loaded
) -> None:
    def seen(settings: tpcal.PlanningSettings) -> frozenset[bytes]:
        plan = tpcal.find_plan(stored, 0.3, model=loaded, settings=settings).plan
        return unpack(plan.provenance["data"]["seen"])

    of_many = seen(replace(SETTINGS, samples=28))
    assert of_many <= seen(SETTINGS)
