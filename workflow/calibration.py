"""`tpcal.make_profile`: measures what each decoder layer loses when tokens are dropped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcal.calibrate.inputs.data_choice import DataChoice
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.extras import needs
from tpcal.plans.progress import Progress, silent
from tpcal.workflow.inputs import log_source
from tpcal.workflow.profiles import StoredProfile
from tpcal.workflow.step_settings import OUT, CalibrationSettings

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded

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
        data: A data set's name or path, or a choice of samples; None takes the built-in questions,
            which are for the built-in model only.
        out: Folder that collects profiles.
        settings: What is probed, and how.
        progress: Receives the samples done, the samples in all and what is going on.

    Raises:
        UsageError: The model, the data or the settings cannot be used; says why.
        MissingExtra: ``tpcal[plan]`` is not installed.
        RunFailed: Out of memory, or the model returns numbers that are not finite.
    """
    from tpcal.calibrate import calibrate, memory_needs, profile
    from tpcal.calibrate.probing_settings import ProbingSettings
    from tpcal.planner.prediction.next_probes import next_probes

    model, data = ModelChoice.of(model), DataChoice.of(data)
    settings, progress = settings or CalibrationSettings(), progress or silent
    data.check_asked_of(model)
    progress(0, 0, "Loading the model")
    loaded = model.load()
    progress(0, 0, "Loading the samples")
    samples = data.load("calibration")
    log_source(samples)
    facts: dict[str, Any] = {"command": settings.command} if settings.command else {}
    facts |= {"samples": data.recorded()}
    need = memory_needs.of_probes(loaded, memory_needs.longest(loaded, samples))
    n_kept = 0 if settings.is_full else len(samples)
    run = memory_needs.arranged(loaded, need, n_kept, settings.batch_size, settings.memory)
    _LOG.info("%s", run.said)
    probing = ProbingSettings(
        selectors=settings.selectors,
        keeps=settings.keeps,
        layers=settings.layers,
        refine=None if settings.is_full else next_probes,
        batch_size=run.batch_size,
        store=run.store,
        seed=data.seed or 0,
        scope=settings.scope,
        provenance=facts,
    )
    found = calibrate.calibrate(loaded, samples, out, settings=probing, progress=progress)
    return StoredProfile(profile.newest(out), found)
