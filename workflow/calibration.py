"""`tpcal.make_profile`: measures what each decoder layer loses when tokens are dropped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.extras import needs
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.inputs import log_source
from tpcal.workflow.profiles import StoredProfile
from tpcal.workflow.step_settings import OUT, CalibrationSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples
    from tpcal.calibrate.run_estimate import RunEstimate
    from tpcal.calibrate.tape_store import Store

_LOG = logging.getLogger(__name__)


@needs("plan")
def make_profile(
    model: ModelChoice | Loaded | str | None = None,
    data: DataChoice | str | None = None,
    *,
    out: Path | str = OUT,
    settings: CalibrationSettings | None = None,
    progress: Progress | None = None,
) -> StoredProfile:
    """Calibrates a model on samples and writes the profile into a folder of its own in ``out``.

    The same call continues a run that was interrupted, and returns a finished profile at once.

    Example:
        >>> import tpcal
        >>> settings = tpcal.CalibrationSettings(("grid",), keeps=(0.5, 0.0), layers=(0, 4))
        >>> stored = tpcal.make_profile(data=tpcal.DataChoice(samples=14), settings=settings)
        >>> stored.profile.kl.shape  # samples, probes
        (14, 4)

    Args:
        model: A name, a choice or a loaded model; None takes the built-in model.
        data: A data set's name or path, a mix of data sets by name, or a choice of samples; None
            takes the built-in questions for a built-in model, and ``lite`` for any other.
        out: Folder that collects profiles.
        settings: What is probed, and how.
        progress: Receives the samples done, the samples in all and what is going on.

    Raises:
        UsageError: The model, the data or the settings cannot be used; says why.
        MissingExtra: ``tpcal[plan]`` is not installed.
        RunFailed: Out of memory, or the model returns numbers that are not finite.
    """
    from tpcal.calibrate import calibrate, profile
    from tpcal.calibrate.probing_settings import ProbingSettings
    from tpcal.planner.prediction.next_probes import next_probes

    settings, progress = settings or CalibrationSettings(), progress or silent
    run = _prepared(ModelChoice.of(model), DataChoice.of(data), settings, progress)
    _LOG.info("%s", run.memory)
    facts: dict[str, Any] = {"command": settings.command} if settings.command else {}
    facts |= {"samples": run.data.recorded()}
    probing = ProbingSettings(
        selectors=settings.selectors,
        keeps=settings.keeps,
        layers=settings.layers,
        refine=None if settings.is_full else next_probes,
        batch_size=run.batch_size,
        store=run.store,
        seed=run.data.seed or 0,
        scope=settings.scope,
        merge=settings.merge,
        provenance=facts,
    )
    folder = calibrate.calibrated(run.loaded, run.samples, out, probing, progress)
    return StoredProfile(folder, profile.load(folder))


@dataclass(frozen=True)
class CalibrationForecast:
    """What a calibration will measure, and about how much memory and time it will take."""

    model: str
    samples: Samples
    memory: str
    """The memory of the run, in words."""
    batch_size: int
    estimate: RunEstimate


@needs("plan")
def forecast(
    model: ModelChoice | Loaded | str | None = None,
    data: DataChoice | str | None = None,
    *,
    settings: CalibrationSettings | None = None,
    progress: Progress | None = None,
) -> CalibrationForecast:
    """What `make_profile` with the same arguments will do; the model and the samples are loaded.

    A few probes of the first batch are timed. Nothing is written.

    Example:
        >>> import tpcal
        >>> from tpcal.workflow.calibration import forecast
        >>> found = forecast(data=tpcal.DataChoice(samples=14))  # doctest: +SKIP
        >>> found.estimate.least_s <= found.estimate.most_s  # doctest: +SKIP
        True

    Args:
        model: As in `make_profile`.
        data: As in `make_profile`.
        settings: As in `make_profile`.
        progress: As in `make_profile`.

    Raises:
        UsageError: The model, the data or the settings cannot be used; says why.
        MissingExtra: ``tpcal[plan]`` is not installed.
        RunFailed: Out of memory.
    """
    from tpcal.calibrate import probe_grid, run_estimate
    from tpcal.plans.families import find
    from tpcal.plans.plan_records import Plan

    settings, progress = settings or CalibrationSettings(), progress or silent
    run = _prepared(ModelChoice.of(model), DataChoice.of(data), settings, progress)
    grid = probe_grid.probes(
        run.loaded.identity.n_layers,
        selectors=settings.selectors,
        keeps=settings.keeps,
        layers=settings.layers,
        allowed=find(run.loaded.model).cut_layers(run.loaded.model),
    )
    progress(0, 0, "Timing probes")
    estimate = run_estimate.estimate(
        run.loaded,
        run.samples,
        grid,
        run.batch_size,
        refines=not settings.is_full,
        like=Plan(scope=settings.scope, merge=settings.merge),
    )
    return CalibrationForecast(run.loaded.name, run.samples, run.memory, run.batch_size, estimate)


class _Prepared(NamedTuple):
    """A calibration that can begin."""

    loaded: Loaded
    data: DataChoice
    samples: Samples
    batch_size: int
    store: Store
    memory: str


def _prepared(
    model: ModelChoice, data: DataChoice, settings: CalibrationSettings, progress: Progress
) -> _Prepared:
    from tpcal.calibrate import memory_needs

    data = data.for_model(model)
    progress(0, 0, "Loading the model")
    loaded = model.load()
    progress(0, 0, "Loading the samples")
    samples = data.load("calibration")
    log_source(samples)
    need = memory_needs.of_probes(loaded, memory_needs.longest(loaded, samples))
    n_kept = 0 if settings.is_full else len(samples)
    run = memory_needs.arranged(loaded, need, n_kept, settings.batch_size, settings.memory)
    return _Prepared(loaded, data, samples, run.batch_size, run.store, run.said)
