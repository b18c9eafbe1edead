"""The time that a calibration is expected to take."""

from __future__ import annotations

import pytest
import torch

from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.profile import Probe
from tpcal.calibrate.run_estimate import estimate


def test_a_model_on_the_cpu_is_timed_without_waiting_for_a_gpu(
    loaded: Loaded, scenes: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # of another process
    grid = [Probe(1, 0.5, "grid"), Probe(2, 0.0)]
    found = estimate(loaded, scenes, grid, 2, refines=False)
    assert found.n_probes == 2
    assert 0 < found.least_s == found.most_s
