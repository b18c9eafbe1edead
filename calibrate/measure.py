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

from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.memory import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.tape import Recording, Tape
from tpcal.calibrate.tape_store import Store, StoredRecord
from tpcal.plans.schema import Cut

Array = NDArray[Any]
ADVICE = "Use a smaller --batch-size, or --memory with less than it had."


@dataclass(frozen=True)
class _Batch:
    recording: Recording
    answer: Tensor  # [b, A, D] last outputs of the unpruned run
    positions: Tensor  # [b, A]
    valid: Tensor  # [b, A]


class Measurer:
    """Measures plans, batch by batch, so that a caller can stop a bad one early.

    The first call of `losses` runs the unpruned model once over all samples. What it keeps of it,
    in ``store``, is layer 0's input, S * D numbers a sample in the model's precision, and little
    else: 5 MB a sample for a 7B LLaVA in half precision. On the device is one batch at a time.

    Args:
        loaded: The model, with no plan applied.
        samples: What to measure on.
        batch_size: Samples per run of the model.
        store: Where recorded batches are kept; several measurers may share one.
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Samples,
        *,
        batch_size: int = 16,
        store: Store | None = None,
    ) -> None:
        self._loaded = loaded
        self._samples = samples
        self._batch_size = batch_size
        self._store = Store() if store is None else store
        self._batches: list[tuple[Array, StoredRecord[_Batch]]] | None = None
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
        for numbers, kept in self._recorded():
            if not cuts:
                nothing = np.zeros(len(numbers), np.float32)
                yield numbers, nothing, nothing
                continue
            with memory_guard("Measuring a plan", ADVICE), torch.inference_mode():
                kl, flips = self._deviation(kept.load(), cuts)
            yield numbers, kl.cpu().numpy(), flips.cpu().numpy()

    def _deviation(self, batch: _Batch, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        tape = Tape(self._loaded.model, batch.recording)
        pruned = log_probabilities(tape.replay(cuts, batch.positions).logits)
        full = log_probabilities(tape.head(batch.answer))
        return answer_deviation(full, pruned, batch.valid)

    def _recorded(self) -> list[tuple[Array, StoredRecord[_Batch]]]:
        if self._batches is None:
            with memory_guard("Recording the unpruned model", ADVICE), torch.inference_mode():
                turns = in_turns(self._samples.sample_groups)
                starts = range(0, len(turns), self._batch_size)
                self._batches = [self._record(turns[i : i + self._batch_size]) for i in starts]
        return self._batches

    def _record(self, numbers: Sequence[int]) -> tuple[Array, StoredRecord[_Batch]]:
        model = self._loaded.model
        encoded = encode(self._loaded.processor, [self._samples[i] for i in numbers], model)
        tape = Tape.record(
            model, encoded.inputs, prompt_length=encoded.prompt_length, every_layer=False
        )
        answer, recording = tape.answer_states(encoded.positions), tape.recording.of_layer_0()
        batch = _Batch(recording, answer, encoded.positions, encoded.valid)
        return np.array(numbers), self._store.keep(batch)


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
