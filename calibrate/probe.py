"""Measurements of calibration on a batch of samples: of every single cut, and of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpcal.calibrate.deviation import (
    answer_deviation,
    local_deviation,
    log_probabilities,
    text_after_images,
)
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.profile import MASSES, MEASURES, Probe
from tpcal.calibrate.tape import Recording, Tape
from tpcal.plans.errors import RunFailed, UsageError, excerpt
from tpcal.plans.executor.prompt import by_image
from tpcal.plans.input_sizes import NAMES
from tpcal.plans.plan_records import UNCUT, Cut, Plan

TAU = 0.93
"""A visual token counts as turned below this cosine (BTP, arXiv 2505.22038, App. 7.6)."""
Arrays = dict[str, NDArray[Any]]


def widths(n_probes: int, n_layers: int) -> dict[str, int]:
    """Number of columns of every array that `measure` returns, by name."""
    return {
        **dict.fromkeys(MEASURES, n_probes),
        **dict.fromkeys(MASSES, n_layers),
        "counts": len(NAMES),
    }


@dataclass(frozen=True)
class Recorded:
    """A batch after its unpruned pass; `measure` needs nothing else, for any probes."""

    recording: Recording
    positions: Tensor  # [b, A]
    valid: Tensor  # [b, A]
    counts: Tensor  # [b, 3] visual tokens, images and text tokens of the prompt


def record(loaded: Loaded, samples: Samples, numbers: Sequence[int]) -> Recorded:
    """The unpruned pass over the samples of these numbers.

    Raises:
        UsageError: A sample has no images.
    """
    batch = [samples[i] for i in numbers]
    encoded = encode(loaded.processor, batch, loaded.model)
    tape = Tape.record(loaded.model, encoded.inputs, prompt_length=encoded.prompt_length)
    n_tokens = tape.visual_mask.sum(dim=1)
    if not bool(n_tokens.all()):
        bad = next(s.id for s, n in zip(batch, n_tokens.tolist(), strict=True) if not n)
        raise UsageError(f"Samples must have images; got none in sample {excerpt(bad)}.")
    grids = tape.recording.prompt.grids
    n_images = torch.tensor([len(by_image(views)) for views in grids], device=n_tokens.device)
    counts = torch.stack((n_tokens, n_images, encoded.prompt_length - n_tokens), dim=1)
    return Recorded(tape.recording, encoded.positions, encoded.valid, counts)


def measure(
    loaded: Loaded, batch: Recorded, probes: Sequence[Probe], like: Plan = UNCUT
) -> Arrays:
    """All measurements of a batch, [b, columns] each, float32, by name.

    Args:
        loaded: The model.
        batch: The batch.
        probes: The cuts to try.
        like: A plan of the same scope and merging as those that will have such cuts.

    Raises:
        RunFailed: The model returned numbers that are not finite.
    """
    tape = Tape(loaded.model, batch.recording)
    columns = _columns_of_layers(tape)
    columns |= _columns_of_probes(tape, probes, batch, like)
    columns["counts"] = batch.counts
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
    tape: Tape, probes: Sequence[Probe], batch: Recorded, like: Plan
) -> dict[str, Tensor]:
    # A probe is one cut. Its replay gives the two deviations: the answer's, from the logits at
    # the answer's positions, and the local one, from the output of the layer after the cut. The
    # recorded input of the next layer is that layer's unpruned output.
    full = log_probabilities(tape.logits(batch.positions))
    where = text_after_images(tape.text_mask, tape.visual_mask)
    found: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for probe in probes:
        cut = Cut(probe.layer, probe.keep, probe.selector, probe.params)
        replayed = tape.replay([cut], batch.positions, like)
        kl, flips = answer_deviation(full, log_probabilities(replayed.logits), batch.valid)
        output = tape.state(probe.layer + 1)
        found["kl"].append(kl)
        found["flips"].append(flips)
        found["local"].append(local_deviation(replayed.first_output, output, where))
    return {name: torch.stack(columns, dim=1) for name, columns in found.items()}
