"""Calibration: tries every cut of a grid on every sample, by replays from the cut's layer on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tpcal.calibrate import probe_grid, timing
from tpcal.calibrate import profile as profiles
from tpcal.calibrate.inputs.answer_tokens import MAX_ANSWER_TOKENS, OWN_ANSWER_TOKENS
from tpcal.calibrate.inputs.batches import prompt_inputs
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.model_digests import settings_digests, weights_digest
from tpcal.calibrate.inputs.models import Loaded, device_of
from tpcal.calibrate.inputs.sample_digests import pack
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.output_head import check_logits
from tpcal.calibrate.probe import TAU
from tpcal.calibrate.probing_settings import BY_IMAGE, ProbingSettings
from tpcal.calibrate.profile import Probe, Profile
from tpcal.calibrate.rounds import Rounds
from tpcal.calibrate.workers import team
from tpcal.plans import families
from tpcal.plans.errors import UsageError
from tpcal.plans.local_paths import file_name
from tpcal.plans.plan_records import MERGES, SCOPES, Cut, Plan
from tpcal.plans.progress import Progress, silent


def calibrate(
    loaded: Loaded,
    samples: Samples,
    out: Path | str,
    *,
    settings: ProbingSettings | None = None,
    progress: Progress | None = None,
) -> Profile:
    """The profile of a model, written to a folder of its own in ``out``.

    Every finished batch is kept on disk. After any interruption, the same call continues the run,
    and the profile is bit for bit that of an uninterrupted run with the same batch size on the
    same machine. A finished profile is returned at once. Processes that were started together
    (`workers.team`) share the batches and give the same profile as a single one; all of them must
    name the same shared folder.

    A sample costs about ``(layers + 1) / 2 * sum of keeps * selectors`` runs of one decoder layer
    over the unpruned prompt: a cut before layer l is replayed from l on, and the layers after it
    see only the kept tokens. With ``refine``, the probes that it names take the place of the full
    grid.

    Args:
        loaded: The model.
        samples: The samples to measure on.
        out: Folder that collects profiles.
        settings: The probes, and how they are measured; None probes the full default grid.
        progress: Called with samples done, samples in all and a description of the step.

    Raises:
        UsageError: The grid or the scope is bad, samples have no images, the folder holds
            something else, or the family does not make the logits of the model.
        RunFailed: Out of memory, or the model returns numbers that are not finite.

    Example:
        >>> from tpcal.calibrate.calibrate import calibrate
        >>> from tpcal.calibrate.inputs.models import load
        >>> from tpcal.calibrate.inputs.samples import load_samples
        >>> samples = load_samples("embedded", n=14)
        >>> profile = calibrate(load("embedded"), samples, "profiles")  # doctest: +SKIP
    """
    return profiles.load(calibrated(loaded, samples, out, settings, progress))


def calibrated(
    loaded: Loaded,
    samples: Samples,
    out: Path | str,
    settings: ProbingSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of the profile that `calibrate` returns, after the same work."""
    # Step 1: fix the grid and everything the results depend on. The hash of the latter names the
    # folder, so that another model, grid or set of samples never continues this run.
    settings = settings or ProbingSettings()
    refine, like = settings.refine, Plan(scope=settings.scope, merge=settings.merge)
    _check(like)
    allowed = families.find(loaded.model).cut_layers(loaded.model)
    tried = probe_grid.probes(
        loaded.identity.n_layers,
        selectors=settings.selectors,
        keeps=settings.keeps,
        layers=settings.layers,
        allowed=allowed,
    )
    depends_on = _depends_on(
        loaded, samples, tried, settings.seed, like=like, refined=refine is not None
    )
    folder = Path(out) / _folder_name(loaded.name, depends_on)
    workers = team()
    batch_size = workers.agree(lambda: settings.batch_size)  # processes may differ in free memory
    # Step 2: a finished profile ends the work at once.
    if workers.agree((folder / profiles.PROFILE).exists):
        with suppress(PermissionError):  # a folder may be for reading only
            os.utime(folder / profiles.PROFILE)  # the newest profile is the one asked for last
        return folder
    # Step 3: collect what the profile says about its origin; it has fields of its own for the
    # keys left out.
    fields = ("schema", "scope", "merge", "model", "probes")
    kept = {k: v for k, v in depends_on.items() if k not in fields}
    kept["data"] = {**samples.recipe, **kept["data"], "seen": pack(samples.identities)}
    kept["data"] |= samples.source.counts()
    if allowed.stop < loaded.identity.n_layers:
        kept["stop_layer"] = allowed.stop
    kept |= settings.provenance
    report = progress if progress and workers.is_main else silent
    rounds = Rounds(
        loaded,
        samples,
        folder,
        depends_on,
        kept,
        batch_size,
        workers,
        report,
        settings.store if refine else None,
        like,
    )
    # Step 4: measure. Without ``refine``, one round over the full grid; with it, a coarse round
    # and then rounds of what it asks for. Last, the main process times the layers.
    advice = "What is done is kept. Run the same command with a smaller --batch-size."
    with memory_guard("Calibration", advice), torch.inference_mode():
        check_logits(loaded.model)
        rounds.run(probe_grid.coarse(tried) if refine else tried)
        if refine:
            rounds.refine(tried, refine)
        if workers.is_main:
            report(0, 0, "Timing layers")
            found = profiles.placed(_timed(rounds.profile(), loaded, samples), folder)
            profiles.save(found, folder)
            rounds.discard()
    workers.wait()
    return folder


def _check(like: Plan) -> None:
    if like.scope not in SCOPES:
        raise UsageError(f"scope must be one of {', '.join(SCOPES)}; got {like.scope!r}.")
    if like.merge is not None and like.merge not in MERGES:
        raise UsageError(f"merge must be one of {', '.join(MERGES)}; got {like.merge!r}.")


def _timed(profile: Profile, loaded: Loaded, samples: Samples) -> Profile:
    # One cut of each selector is timed, before the earliest layer it was tried at, so that
    # `timing.examples` can add further cuts after it.
    prompt = prompt_inputs(loaded.processor, [samples[0]], loaded.model)
    earliest: dict[str, Cut] = {}
    for probe in sorted(profile.probes, key=lambda probe: probe.layer):
        if probe.selector is not None:
            cut = Cut(probe.layer, probe.keep, probe.selector, probe.params)
            earliest.setdefault(probe.selector, cut)
    counts = timing.counts_to_time(profile.n_tokens, profile.n_text)
    clock = timing.Clock(loaded.model, prompt)
    times = timing.measure(clock, counts, list(earliest.values()), profile.like)
    return replace(profile, layer_ms=times.layer_ms, executor_ms=times.executor_ms)


def _depends_on(
    loaded: Loaded,
    samples: Samples,
    probes: Sequence[Probe],
    seed: int,
    *,
    like: Plan = BY_IMAGE,
    refined: bool = False,
) -> dict[str, Any]:
    """Everything that the results depend on, as plain data."""
    return {
        **({"refined": True} if refined else {}),
        **like.choices,
        "schema": profiles.SCHEMA,
        "model": {k: v for k, v in asdict(loaded.identity).items() if v is not None},
        "weights": weights_digest(loaded.model),
        "settings": settings_digests(loaded),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": device_of(loaded.model).type,
        "data": {
            "name": samples.name,
            "description": samples.description,
            "fingerprint": samples.fingerprint,
            "n": len(samples),
            "seed": seed,
            **{key: value for key, value in samples.recipe.items() if key == "metric"},
        },
        "tau": TAU,
        "answer_tokens": [MAX_ANSWER_TOKENS, OWN_ANSWER_TOKENS],
        "versions": {name: _version(name) for name in ("tpcal", "torch", "transformers")},
        "probes": [asdict(probe) for probe in probes],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _folder_name(name: str, depends_on: Mapping[str, Any]) -> str:
    last = Path(name).name or name
    slug = file_name(last) or "model"
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    return f"{slug}-{digest[:10]}"
