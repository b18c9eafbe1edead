"""Calibration: every single cut of a grid tried on every sample, replayed from the cut's layer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpcal.calibrate import grid, timing
from tpcal.calibrate import profile as profiles
from tpcal.calibrate.batches import MAX_ANSWER_TOKENS, OWN_ANSWER_TOKENS, encode
from tpcal.calibrate.deviation import (
    answer_deviation,
    local_deviation,
    log_probabilities,
    text_after_images,
)
from tpcal.calibrate.memory import memory_guard
from tpcal.calibrate.models import Loaded, weights_digest
from tpcal.calibrate.parts import Parts
from tpcal.calibrate.profile import MASSES, MEASURES, Probe, Profile
from tpcal.calibrate.samples import Samples
from tpcal.calibrate.seen import pack
from tpcal.calibrate.sharing import Team, team
from tpcal.calibrate.tape import Tape
from tpcal.plans import families
from tpcal.plans.errors import RunFailed, UsageError
from tpcal.plans.schema import Cut

Progress = Callable[[int, int, str], None]
TAU = 0.93
"""Cosine below which a visual token counts as turned (BTP, arXiv 2505.22038, App. 7.6)."""
DEFAULT_BATCH_SIZE = 16
Arrays = dict[str, NDArray[Any]]


def calibrate(
    loaded: Loaded,
    samples: Samples,
    out: Path | str,
    *,
    selectors: Sequence[str] | None = None,
    keeps: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Profile:
    """The profile of a model, written to a folder of its own in ``out`` (`folder_of`).

    Every finished batch is kept on disk. However a run ends, the same call continues it, and the
    profile comes out bit for bit the same as that of an undisturbed run with the same batch size
    on the same machine. A finished profile is returned at once. Processes that were started
    together (`sharing.team`) share the batches and give the same profile as one; all of them have
    to name one folder that they share. The cost of a sample is about as many forward passes as
    ``(layers + 1) / 2 * sum of keeps * selectors`` decoder layers make.

    Args:
        loaded: The model.
        samples: What to measure on.
        out: Folder that collects profiles.
        selectors: As `grid.probes`.
        keeps: As `grid.probes`.
        layers: As `grid.probes`.
        batch_size: Samples per run of the model. May change between a run and its continuation.
        seed: The seed the samples were drawn with; kept as provenance.
        progress: Called with samples done, samples in all and what is going on.
        provenance: Plain data to keep in the profile, under these keys.

    Raises:
        UsageError: A bad grid, samples without images, or a folder that holds something else.
        RunFailed: Out of memory, or the model returns numbers that are not finite.
    """
    tried = grid.probes(
        loaded.identity.n_layers,
        selectors=selectors,
        keeps=keeps,
        layers=layers,
        allowed=families.find(loaded.model).cut_layers(loaded.model),
    )
    settings = _settings(loaded, samples, tried, seed)
    folder = Path(out) / _folder_name(loaded.name, settings)
    workers = team()
    if workers.agree((folder / profiles.PROFILE).exists):
        os.utime(folder / profiles.PROFILE)  # the newest profile is the one asked for last
        return profiles.load(folder)
    parts = Parts(folder, settings, _widths(loaded, tried), len(samples))
    advice = "What is done is kept. Run the same command with a smaller --batch-size."
    report = progress if progress and workers.is_main else _silent
    with memory_guard("Calibration", advice), torch.inference_mode():
        _run(loaded, samples, tried, parts, batch_size, report, workers)
        if workers.is_main:
            report(0, 0, "Timing layers")
            found = parts.whole()
            kept = {k: v for k, v in settings.items() if k not in ("schema", "model", "probes")}
            kept["data"] = {**samples.recipe, **kept["data"], "seen": pack(samples.identities)}
            profile = _profile(loaded, samples, tried, found, {**kept, **(provenance or {})})
            profiles.save(profile, folder)
            parts.discard()
    workers.wait()
    return profiles.load(folder)


def folder_of(
    loaded: Loaded, samples: Samples, out: Path | str, probes: Sequence[Probe], seed: int = 0
) -> Path:
    """Where `calibrate` writes: the model's name and a hash of all that results depend on."""
    return Path(out) / _folder_name(loaded.name, _settings(loaded, samples, probes, seed))


def _run(
    loaded: Loaded,
    samples: Samples,
    probes: Sequence[Probe],
    parts: Parts,
    batch_size: int,
    progress: Progress,
    workers: Team,
) -> None:
    undone = workers.agree(parts.undone)  # cut into batches as a lone process would cut it
    batches = [undone[i : i + batch_size] for i in range(0, len(undone), batch_size)]
    n = len(samples)
    done = n - len(undone)
    progress(done, n, "Calibrating")
    for numbers in workers.share(batches):
        parts.add(numbers, _measure(loaded, samples, numbers, probes))
        done = min(done + len(numbers) * workers.size, n)  # the others are about as far
        progress(done, n, "Calibrating")
    workers.wait()


def _measure(
    loaded: Loaded, samples: Samples, numbers: Sequence[int], probes: Sequence[Probe]
) -> Arrays:
    """Every figure of some samples, [b, columns] each."""
    batch = [samples[i] for i in numbers]
    encoded = encode(loaded.processor, batch, loaded.model)
    tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
    n_tokens = tape.visual_mask.sum(dim=1)
    if not bool(n_tokens.all()):
        bad = next(s.id for s, n in zip(batch, n_tokens.tolist(), strict=True) if not n)
        raise UsageError(f"Samples must have images; got none in sample {bad}.")
    columns = _columns_of_layers(tape)
    columns |= _columns_of_probes(tape, probes, encoded.positions, encoded.valid)
    columns["counts"] = torch.stack((n_tokens, encoded.prompt_length - n_tokens), dim=1)
    arrays = {name: value.float().cpu().numpy() for name, value in columns.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise RunFailed(
                f"The model must return finite numbers; got {name} that is not. Try another "
                "--dtype: bfloat16 or float32."
            )
    return arrays


def _columns_of_layers(tape: Tape) -> dict[str, Tensor]:
    layers = range(tape.n_layers)
    masses = [tape.attention_mass(layer) for layer in layers]
    return {
        "turns": torch.stack([tape.turned(layer, TAU) for layer in layers], dim=1),
        "text_to_visual": torch.stack([mass[0] for mass in masses], dim=1),
        "visual_to_text": torch.stack([mass[1] for mass in masses], dim=1),
    }


def _columns_of_probes(
    tape: Tape, probes: Sequence[Probe], positions: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    full = log_probabilities(tape.logits(positions))
    where = text_after_images(tape.text_mask, tape.visual_mask)
    found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for probe in probes:
        cut = Cut(probe.layer, probe.keep, probe.selector, probe.params)
        replayed = tape.replay([cut], positions)
        kl, flips = answer_deviation(full, log_probabilities(replayed.logits), valid)
        output = tape.state(probe.layer + 1)
        found["kl"].append(kl)
        found["flips"].append(flips)
        found["local"].append(local_deviation(replayed.first_output, output, where))
    return {name: torch.stack(columns, dim=1) for name, columns in found.items()}


def _profile(
    loaded: Loaded,
    samples: Samples,
    probes: tuple[Probe, ...],
    found: Arrays,
    provenance: Mapping[str, Any],
) -> Profile:
    counts = found.pop("counts").mean(axis=0, dtype=np.float64)
    n_tokens, n_text = (int(np.floor(count + 0.5)) for count in counts)
    return Profile(
        model=loaded.identity,
        shape=loaded.shape,
        n_tokens=n_tokens,
        n_text=n_text,
        groups=samples.groups,
        sample_group=np.array([samples.groups.index(g) for g in samples.sample_groups]),
        probes=probes,
        layer_ms=timing.layer_ms(loaded.model, timing.counts_to_time(n_tokens, n_text)),
        provenance=provenance,
        **found,
    )


def _settings(
    loaded: Loaded, samples: Samples, probes: Sequence[Probe], seed: int
) -> dict[str, Any]:
    """Plain data of everything the results depend on."""
    return {
        "schema": profiles.SCHEMA,
        "model": {k: v for k, v in asdict(loaded.identity).items() if v is not None},
        "weights": weights_digest(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "data": {
            "name": samples.name,
            "description": samples.description,
            "fingerprint": samples.fingerprint,
            "n": len(samples),
            "seed": seed,
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


def _widths(loaded: Loaded, probes: Sequence[Probe]) -> dict[str, int]:
    per_probe = dict.fromkeys(MEASURES, len(probes))
    return {**per_probe, **dict.fromkeys(MASSES, loaded.identity.n_layers), "counts": 2}


def _folder_name(name: str, settings: Mapping[str, Any]) -> str:
    last = Path(name).name or name
    slug = re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.") or "model"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{slug}-{digest[:10]}"


def _silent(done: int, total: int, what: str) -> None:
    pass
