"""Calibrations with each setting as a keyword, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpcal.calibrate import calibrate as calibration
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.probing_settings import ProbingSettings
from tpcal.calibrate.profile import Profile
from tpcal.plans.progress import Progress


def calibrate(
    loaded: Loaded, samples: Samples, out: Path, progress: Progress | None = None, **settings: Any
) -> Profile:
    """`tpcal.calibrate.calibrate.calibrate`."""
    return calibration.calibrate(
        loaded, samples, out, settings=ProbingSettings(**settings), progress=progress
    )
