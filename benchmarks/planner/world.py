"""The measured model, its samples and profiles, and what plans lose and answer on them.

Everything is made at most once per process; losses and answers are what the stages keep on disk.
The questions are the built-in scenes for every model, because the benchmark needs thousands that
nothing has seen, drawn anew by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tpcal.calibrate import calibrate as calibration
from tpcal.calibrate.evaluation import accuracy
from tpcal.calibrate.evaluation.downsized import Resized
from tpcal.calibrate.evaluation.generate import InMemory, answer_all
from tpcal.calibrate.evaluation.variants import Impossible
from tpcal.calibrate.inputs import models
from tpcal.calibrate.inputs.batches import encode, prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples, load_samples
from tpcal.calibrate.measure import Measurer
from tpcal.calibrate.probing_settings import DEFAULT_BATCH_SIZE, ProbingSettings
from tpcal.calibrate.profile import MASSES, MEASURES, Profile
from tpcal.planner.prediction.next_probes import next_probes
from tpcal.planner.prediction.objective import MOST
from tpcal.planner.prediction.predict import Predictor
from tpcal.plans.budget_projection import MAX_CUTS
from tpcal.plans.families import find
from tpcal.plans.local_paths import BUILT_IN, EMBEDDED
from tpcal.plans.plan_records import Cut, Plan

Floats = NDArray[np.float64]
CALIBRATION, TEST = "calibration", "eval"
FULL, ADAPTIVE, DROP_ALL = "full grid", "chosen probes", "drop all"


@dataclass
class Measured:
    """Which model this process measures; one model in all its life."""

    name: str = EMBEDDED
    device: str | None = None
    """Where it runs; None: built-in models on the CPU, others on a GPU if there is one."""
    merge: str | None = None
    """What plans do with tokens that leave, as in ``Plan.merge``; published schedules that tpcal
    is compared with drop them."""

    @property
    def like(self) -> Plan:
        """A plan without cuts that does so."""
        return Plan(merge=self.merge)


measured = Measured()


def use(name: str, device: str | None = None, merge: str | None = None) -> None:
    """Measures this model from now on: an alias, a Hub id, a folder or a built-in one."""
    if (name, device, merge) != (measured.name, measured.device, measured.merge):
        measured.name, measured.device, measured.merge = name, device, merge
        for kept in (model, n_tokens, measurer, calibrated, predictor):
            kept.cache_clear()


@cache
def model() -> Loaded:
    """The model on one thread: processes share the cores."""
    torch.set_num_threads(1)
    usual = "cpu" if measured.name in BUILT_IN else "auto"
    return models.load(measured.name, device=measured.device or usual)


def batch_size() -> int:
    """Samples per run of the model when plans are measured."""
    small = measured.name == EMBEDDED or model().model.device.type != "cpu"
    return 49 if small else DEFAULT_BATCH_SIZE


def n_layers() -> int:
    """Decoder layers, L."""
    return model().shape.n_layers


@cache
def n_tokens() -> int:
    """Visual tokens of an image of the scenes, N."""
    loaded, (sample, *_) = model(), samples(TEST, 1, 0)
    inputs = prompt_inputs(loaded.processor, [sample], loaded.model)
    return int(find(loaded.model).visual_mask(loaded.model, inputs["input_ids"], None).sum())


def patch_pixels() -> int:
    """Pixels of a visual token's side, of a processor that brings all images to one square size.

    Raises:
        Impossible: The processor does not, so that no smaller size has a known number of tokens.
    """
    images: Any = model().processor.image_processor
    size, rows = dict(getattr(images, "size", None) or {}), isqrt(n_tokens())
    side = size.get("shortest_edge", size.get("height"))
    if side is None or rows * rows != n_tokens():
        raise Impossible("not with this processor")
    return int(side) // rows


@lru_cache(maxsize=4)
def samples(split: str, n: int, seed: int, own: bool = False) -> Samples:
    """Questions in turns over the groups: the first m of them are those of a call with m.

    Args:
        split: ``calibration`` or ``eval``.
        n: How many.
        seed: Another one draws others.
        own: Without answers, so that the model's own take their place.
    """
    drawn = load_samples(None, split=split, n=n, seed=seed)
    return drawn.unanswered() if own else drawn


@lru_cache(maxsize=4)
def measurer(split: str, n: int, seed: int, start: int = 0) -> Measurer:
    """Runs plans on ``n`` samples, those from ``start`` on."""
    drawn = samples(split, start + n, seed).part(start, start + n)
    return Measurer(model(), drawn, batch_size=batch_size(), like=measured.like)


def losses(
    cuts: Sequence[Cut], split: str, n: int, seed: int, start: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[n] nats, at most `MOST` as in a search, and [n] whether any answer token changed."""
    nats, changed = np.zeros(n, np.float32), np.zeros(n, bool)
    for at, kl, flips in measurer(split, n, seed, start).losses(cuts):
        nats[at], changed[at] = np.clip(kl, 0.0, MOST), flips > 0
    return nats, changed


def answer_tokens(split: str, n: int, seed: int) -> NDArray[np.int64]:
    """[n] next-token distributions of each answer, that of its end included."""
    loaded = model()
    valid = encode(loaded.processor, list(samples(split, n, seed)), loaded.model).valid
    counts: NDArray[np.int64] = valid.sum(dim=1).cpu().numpy()
    return counts


def by_group(values: NDArray[Any], split: str, n: int, seed: int) -> Floats:
    """[..., G] means of [..., n] in the order of the samples' groups."""
    drawn = samples(split, n, seed)
    names = np.array(drawn.sample_groups)
    return np.stack([values[..., names == g].mean(axis=-1) for g in drawn.groups], axis=-1)


def answers(cuts: Sequence[Cut], n: int, merge: str | None = None) -> tuple[str, ...]:
    """[n] generated answers to the test split's questions.

    Args:
        cuts: The cuts of a plan; without any, the unpruned model answers.
        n: How many.
        merge: The plan's ``merge``.
    """
    plan = Plan(tuple(cuts), merge=merge) if cuts else None
    return accuracy.answers(model(), samples(TEST, n, 0), plan)


def answers_downsized(height: int, width: int, n: int) -> tuple[str, ...]:
    """The same of the unpruned model on images of that many patches.

    The tower interpolates its position embeddings, as transformers does for CLIP; the built-in
    ones were trained at one size only.
    """
    pixels = patch_pixels()
    variant = Resized(height * pixels, width * pixels)
    (given,) = answer_all(model(), samples(TEST, n, 0), [(variant, InMemory())])
    return tuple(answer.text for answer in given)


@lru_cache(maxsize=3)
def calibrated(n: int, seed: int, folder: Path, probes: str = FULL, own: bool = False) -> Profile:
    """The profile of n samples; continued or read where it was begun.

    Args:
        n: How many.
        seed: Of the samples.
        folder: Collects profiles.
        probes: `FULL`, `ADAPTIVE` as `tpcal calibrate` does it by default, or `DROP_ALL` before
            every layer and nothing else.
        own: With the model's own answers.
    """
    refine, merge = next_probes if probes == ADAPTIVE else None, measured.merge
    settings = ProbingSettings(refine=refine, seed=seed, merge=merge)
    if probes == DROP_ALL:
        layers = tuple(find(model().model).cut_layers(model().model))
        settings = ProbingSettings(keeps=(0.0,), layers=layers, seed=seed)
    return calibration.calibrate(
        model(), samples(CALIBRATION, n, seed, own), folder, settings=settings
    )


def calibrate(n: int, seed: int, folder: Path, probes: str, own: bool = False) -> None:
    """Makes the profile, for other processes to read."""
    calibrated(n, seed, folder, probes, own)


def first(profile: Profile, n: int) -> Profile:
    """What calibration of the profile's first n samples alone finds."""
    used = sorted(set(profile.sample_group[:n].tolist()))
    arrays = {name: getattr(profile, name)[:n] for name in (*MEASURES, *MASSES)}
    return replace(
        profile,
        groups=tuple(profile.groups[g] for g in used),
        sample_group=np.array([used.index(g) for g in profile.sample_group[:n].tolist()]),
        **arrays,
    )


@lru_cache(maxsize=4)
def predictor(n: int, seed: int, folder: Path, max_cuts: int = MAX_CUTS) -> Predictor:
    """Predicts from a profile as `tpcal calibrate` makes it."""
    return Predictor(calibrated(n, seed, folder, ADAPTIVE), max_cuts=max_cuts)
