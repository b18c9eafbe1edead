"""How long a calibration will take: timed on the first batch, before the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tpcal.calibrate import probe_grid
from tpcal.calibrate.bench.token_times import now
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded, device_of
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.probe import Recorded, measure, record
from tpcal.calibrate.probing_settings import BY_IMAGE
from tpcal.calibrate.profile import Probe
from tpcal.plans.plan_records import Plan

N_TIMED = 6
"""Number of probes that are timed."""


@dataclass(frozen=True)
class RunEstimate:
    """The estimated time of a calibration on this machine, in seconds."""

    n_probes: int
    """Number of probes of the full grid."""
    least_s: float
    """The first round alone, which measures a coarse grid if the run refines it."""
    most_s: float
    """Every probe of the grid; a run that refines a coarse grid takes about half at most."""


def estimate(
    loaded: Loaded,
    samples: Samples,
    grid: Sequence[Probe],
    batch_size: int,
    *,
    refines: bool = True,
    like: Plan = BY_IMAGE,
) -> RunEstimate:
    """The time of a calibration, from `N_TIMED` probes of the first batch.

    Args:
        loaded: The model.
        samples: The samples of the run.
        grid: The probes of the full grid.
        batch_size: Samples per run of the model.
        refines: Whether a coarse grid is probed first.
        like: A plan of the scope and merging that plans will have.

    Raises:
        RunFailed: Out of memory.

    Example:
        >>> found = estimate(loaded, samples, grid, 16)  # doctest: +SKIP
        >>> found.least_s <= found.most_s  # doctest: +SKIP
        True
    """
    # A probe replays the layers from its own on, so that its time grows with their number and,
    # beside a part that it always takes, with the tokens kept. The timed probes are spread evenly
    # over the grid, and their time for a unit of work stands for that of all.
    numbers = range(min(batch_size, len(samples)))
    n_batches = -(-len(samples) // batch_size)
    timed = [grid[i * len(grid) // N_TIMED] for i in range(min(N_TIMED, len(grid)))]
    advice, device = "Run the same command with a smaller --batch-size.", device_of(loaded.model)
    with memory_guard("The estimate", advice), torch.inference_mode():
        record(loaded, samples, numbers)  # the first run also sets up kernels
        started = now(device)
        batch = record(loaded, samples, numbers)
        recorded_s = now(device) - started
        probed_s = _seconds(loaded, batch, timed, like)
    n_layers = loaded.identity.n_layers
    rate = probed_s / sum(_work(probe, n_layers, batch) for probe in timed)

    def whole(probes: Sequence[Probe]) -> float:
        return n_batches * (
            recorded_s + rate * sum(_work(probe, n_layers, batch) for probe in probes)
        )

    first = probe_grid.coarse(grid) if refines else grid
    return RunEstimate(len(grid), whole(first), whole(grid))


def _seconds(loaded: Loaded, batch: Recorded, probes: Sequence[Probe], like: Plan) -> float:
    device = device_of(loaded.model)
    started = now(device)
    measure(loaded, batch, probes, like)
    return now(device) - started


def _work(probe: Probe, n_layers: int, batch: Recorded) -> float:
    """Work of a probe on the mean prompt of the batch."""
    n_visual, _, n_text = (float(n) for n in batch.counts.float().mean(dim=0))
    return probe_grid.work(probe, n_layers, probe.keep * n_visual, n_visual, n_text)
