"""Which probes a calibration makes, and how it makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpcal.calibrate.rounds import Refine
from tpcal.calibrate.tape_store import Store
from tpcal.plans.plan_records import Plan

DEFAULT_BATCH_SIZE = 16
BY_IMAGE = Plan(scope="image")
"""Has the scope that plans have by default."""


@dataclass(frozen=True)
class ProbingSettings:
    """The grid of probes of `tpcal.calibrate.calibrate.calibrate`, and how they are measured.

    Example:
        >>> from tpcal.calibrate.probing_settings import ProbingSettings
        >>> ProbingSettings(selectors=("grid",), keeps=(0.5, 0.0), layers=(0, 4)).batch_size
        16
    """

    selectors: Sequence[str] | None = None
    """As in `probe_grid.probes`."""
    keeps: Sequence[float] | None = None
    """As in `probe_grid.probes`."""
    layers: Sequence[int] | None = None
    """As in `probe_grid.probes`."""
    refine: Refine | None = None
    """Chooses probes of the grid beyond those of `probe_grid.coarse`; None probes the full grid.
    It must give the same answer for the same profile."""
    batch_size: int = DEFAULT_BATCH_SIZE
    """Samples per run of the model. It may change between a run and its continuation."""
    store: Store | None = None
    """Keeps recorded batches for refining, as far as its host memory goes. None records them again
    in each round of ``refine``."""
    seed: int = 0
    """The seed that the samples were drawn with; kept as provenance."""
    scope: str = BY_IMAGE.scope
    """What cuts choose from, as in ``Plan.scope``; plans made of the profile have it too."""
    merge: str | None = None
    """What cuts do with tokens that leave, as in ``Plan.merge``; plans made of the profile do the
    same."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Plain data to keep in the profile, under these keys."""
