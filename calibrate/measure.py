"""The real loss of whole plans on the calibration samples: one pruned replay each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpcal.calibrate.batches import encode
from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.memory import memory_guard
from tpcal.calibrate.models import Loaded
from tpcal.calibrate.samples import Samples
from tpcal.calibrate.tape import Tape
from tpcal.plans.schema import Cut

Array = NDArray[Any]
ADVICE = "Use a smaller --batch-size or fewer samples."


@dataclass(frozen=True)
class _Batch:
    numbers: Array  # [b] which samples
    tape: Tape
    full: Tensor  # [b, A, V] unpruned log-probabilities of the answer
    positions: Tensor  # [b, A]
    valid: Tensor  # [b, A]


class Measurer:
    """Measures plans, batch by batch, so that a caller can stop a bad one early.

    The first call of `losses` runs the unpruned model once over all samples. What it keeps, on the
    model's device, is layer 0's input and the last output, 2 * S * D numbers a sample in the
    model's precision, and A * V float32 log-probabilities: 11 MB a sample for a 7B LLaVA in half
    precision with one-word answers, about 1 MB for the embedded model.

    Args:
        loaded: The model, with no plan applied.
        samples: What to measure on.
        batch_size: Samples per run of the model.
    """

    def __init__(self, loaded: Loaded, samples: Samples, *, batch_size: int = 16) -> None:
        self._loaded = loaded
        self._samples = samples
        self._batch_size = batch_size
        self._batches: list[_Batch] | None = None
        self.groups: tuple[str, ...] = samples.groups
        self.sample_group: Array = np.array(
            [samples.groups.index(group) for group in samples.sample_groups], dtype=np.int64
        )
        """[n] index into ``groups``."""

    @property
    def n_samples(self) -> int:
        """n."""
        return len(self._samples)

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Array, Array, Array]]:
        """Sample numbers [b], KL in nats [b] and flips [b] of one batch after another.

        A flip is 1 where the sample's answer changes, else 0.

        Batches mix the groups evenly, so that the mean of the first ones is a fair guess. Every
        sample comes once; the order is always the same. Without cuts all is exactly 0.

        Raises:
            RunFailed: Out of memory.
        """
        for batch in self._recorded():
            if not cuts:
                nothing = np.zeros(len(batch.numbers), np.float32)
                yield batch.numbers, nothing, nothing
                continue
            with memory_guard("Measuring a plan", ADVICE), torch.inference_mode():
                replayed = batch.tape.replay(cuts, batch.positions)
                pruned = log_probabilities(replayed.logits)
                kl, flips = answer_deviation(batch.full, pruned, batch.valid)
            yield batch.numbers, kl.cpu().numpy(), flips.cpu().numpy()

    def _recorded(self) -> list[_Batch]:
        if self._batches is None:
            with memory_guard("Recording the unpruned model", ADVICE), torch.inference_mode():
                turns = in_turns(self._samples.sample_groups)
                starts = range(0, len(turns), self._batch_size)
                self._batches = [self._record(turns[i : i + self._batch_size]) for i in starts]
        return self._batches

    def _record(self, numbers: Sequence[int]) -> _Batch:
        model = self._loaded.model
        encoded = encode(self._loaded.processor, [self._samples[i] for i in numbers], model)
        tape = Tape.record(
            model, encoded.inputs, prompt_length=encoded.prompt_length, every_layer=False
        )
        full = log_probabilities(tape.logits(encoded.positions))
        return _Batch(np.array(numbers), tape, full, encoded.positions, encoded.valid)


def n_of_finals(n_measured: int, n_rows: int | None) -> int:
    """Further samples that the best plans of a search are measured on.

    Twice those of the search, as few plans get so far. Of data with an end at most half of the
    rows are used in all, so that the others stay unseen.

    Args:
        n_measured: Samples that the search compares plans on.
        n_rows: Rows of the data; None where there is no end of them.
    """
    most = 2 * n_measured
    return most if n_rows is None else max(0, min(most, n_rows // 2 - n_measured))


def in_turns(groups: Sequence[str]) -> list[int]:
    """Numbers 0..n-1, one of each group in turn, in order within a group."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    turns = zip_longest(*(members[group] for group in sorted(members)))
    return [i for turn in turns for i in turn if i is not None]
