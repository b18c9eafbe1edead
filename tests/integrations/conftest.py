"""The built-in model, its questions, and a plan for it."""

from __future__ import annotations

import pytest
import torch

from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples, load_samples

PLAN = """
schema: 1
model: {n_layers: 8}
cuts:
  - {layer: 0, keep: 0.5, selector: grid}
  - {layer: 1, keep: 0.125, selector: diversity}
  - {layer: 2, keep: 0}
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # several threads are slower at this size


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """The embedded model."""
    return models.load("embedded", device="cpu")


@pytest.fixture(scope="session")
def scenes() -> Samples:
    """Twelve built-in scenes of twelve groups, unseen by calibration."""
    return load_samples(split="eval", n=12)


@pytest.fixture(scope="session")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of `PLAN`."""
    file = tmp_path_factory.mktemp("plans") / "plan.yaml"
    file.write_text(PLAN)
    return str(file)
