"""Calibration against the model's own answers, on the embedded model, which is nearly always right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibrations import calibrate

from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.calibrate.profile import Profile

GRID: dict[str, Any] = {
    "selectors": ["diversity"],
    "keeps": [0.25, 0.05, 0],
    "layers": [1, 3, 5],
    "batch_size": 14,
}


@pytest.fixture(scope="module")
def embedded() -> Loaded:
    """The built-in model."""
    return models.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> Samples:
    """A built-in scene of every group."""
    return load_samples(n=14)


@pytest.fixture(scope="module")
def given(embedded: Loaded, scenes: Samples, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile of the data's answers."""
    return calibrate(embedded, scenes, tmp_path_factory.mktemp("given"), **GRID)


@pytest.fixture(scope="module")
def own(embedded: Loaded, scenes: Samples, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """The profile of the model's own answers."""
    return calibrate(embedded, scenes.unanswered(), tmp_path_factory.mktemp("own"), **GRID)


def lied_to(samples: Samples) -> Samples:
    """The same questions with answers that are wrong."""
    answers = [sample.answer for sample in samples]
    others = [next(a for a in answers if a != own) for own in answers]
    wrong = [replace(s, answer=o) for s, o in zip(samples, others, strict=True)]
    return Samples.of(wrong, samples.name)


def test_the_models_own_answers_give_nearly_the_same_profile(given: Profile, own: Profile) -> None:
    assert given.digest != own.digest
    assert own.provenance["data"]["own_answers"] is True
    right = np.abs(given.kl - own.kl).max(axis=1) < 1e-4  # nothing changed: the same answer
    assert right.mean() > 0.9
    np.testing.assert_allclose(own.mean("kl"), given.mean("kl"), rtol=0.15, atol=0.01)


def test_answers_that_are_wrong_change_only_a_profile_that_looks_at_them(
    embedded: Loaded, scenes: Samples, given: Profile, own: Profile, tmp_path: Path
) -> None:
    def of(samples: Samples) -> Profile:
        return calibrate(embedded, samples, tmp_path, **GRID)

    wrong = lied_to(scenes)
    np.testing.assert_array_equal(of(wrong.unanswered()).kl, own.kl)
    assert np.abs(of(wrong).mean("kl") - given.mean("kl")).max() > 0.01


def test_a_choice_of_own_answers_is_recorded_and_comes_back(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "Is it dark?", "answer": "yes"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    choice = DataChoice(data=str(tmp_path / "data.jsonl"), own_answers=True)
    again = DataChoice.restored(choice.recorded())
    assert again == choice
    drawn = again.load("calibration")
    assert [sample.answer for sample in drawn] == [None]
    assert drawn.fingerprint == choice.load("calibration").fingerprint
    assert drawn.fingerprint != replace(choice, own_answers=False).load("eval").fingerprint
    assert drawn.source.n_rows == 1
    assert "own_answers" not in DataChoice().recorded()


def test_only_the_answers_are_left_out() -> None:
    sample = Sample("7", (), "Is it dark?", "yes", "light")
    (bare,) = Samples.of([sample]).unanswered()
    assert bare == replace(sample, answer=None)
