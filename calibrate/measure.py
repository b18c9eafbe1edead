"""The measured loss of whole plans on the calibration samples, by one pruned replay a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.tape import Recording, Tape
from tpcal.calibrate.tape_store import Store, StoredRecord
from tpcal.plans.plan_records import UNCUT, Cut, Plan

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

    The first call of `losses` runs the unpruned model once over all samples. It keeps the input of
    layer 0 in ``store``, S * D numbers a sample in the model's precision, and little else: 5 MB a
    sample for a 7B LLaVA in half precision. The device holds one batch at a time.

    Args:
        loaded: The model, with no plan applied.
        samples: The samples to measure on.
        batch_size: Samples per run of the model.
        store: Keeps the recorded batches; several measurers may share one.
        like: A plan of the same scope, rounding and merging as those that are measured.

    Example:
        >>> measurer = Measurer(loaded, samples)  # doctest: +SKIP
        >>> for numbers, kl, flips in measurer.losses(plan.cuts):  # doctest: +SKIP
        ...     print(numbers, kl.mean(), flips.mean())
    """

    def __init__(
        self,
        loaded: Loaded,
        samples: Samples,
        *,
        batch_size: int = 16,
        store: Store | None = None,
        like: Plan = UNCUT,
    ) -> None:
        self._loaded = loaded
        self._samples = samples
        self._batch_size = batch_size
        self._like = like
        self._store = Store() if store is None else store
        self._batches: list[tuple[Array, StoredRecord[_Batch]]] | None = None
        self.groups: tuple[str, ...] = samples.groups
        self.sample_group: Array = np.array(
            [samples.groups.index(group) for group in samples.sample_groups], dtype=np.int64
        )
        """[n] group of each sample, as an index into ``groups``."""

    @property
    def fingerprint(self) -> str:
        """Hash of the samples, as `Samples.fingerprint`."""
        return self._samples.fingerprint

    @property
    def n_samples(self) -> int:
        """Number of samples, n."""
        return len(self._samples)

    def of(self, plan: Plan) -> Measurer:
        """A measurer of plans with this one's scope, rounding and merging, on the same record."""
        self._recorded()
        twin = copy(self)
        twin._like = plan
        return twin

    def losses(self, cuts: Sequence[Cut]) -> Iterator[tuple[Array, Array, Array]]:
        """Yields sample numbers [b], KL in nats [b] and flips [b], batch by batch.

        A flip is 1 if the sample's answer changes, else 0.

        Batches mix the groups evenly, so that the first batches estimate the mean without bias
        towards a group. Every sample comes once, always in the same order. Without cuts, all
        values are exactly 0.

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
        # Only the last states of the unpruned run are kept: A * D numbers a sample, where the
        # distributions take A * V. The output head makes distributions of them each time.
        tape = Tape(self._loaded.model, batch.recording)
        replayed = tape.replay(cuts, batch.positions, self._like)
        pruned = log_probabilities(replayed.logits)
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


def n_of_finals(n_measured: int, n_questions: int | None, n_used: int | None = None) -> int:
    """Number of further samples that the best plans of a search are measured on.

    It is twice the number of the search's own samples, because few plans get so far. At most half
    of the questions of finite data are used in all, so that the others stay unseen.

    Args:
        n_measured: Number of samples that the search compares plans on.
        n_questions: Number of questions of the data; None if the data is unlimited.
        n_used: Number of samples that the search or its profile used; None: ``n_measured``.

    Example:
        >>> from tpcal.calibrate.measure import n_of_finals
        >>> n_of_finals(100, None), n_of_finals(100, 500), n_of_finals(100, 150)
        (200, 150, 0)
    """
    most = 2 * n_measured
    used = n_measured if n_used is None else n_used
    return most if n_questions is None else max(0, min(most, n_questions // 2 - used))


def in_turns(groups: Sequence[str]) -> list[int]:
    """The numbers 0 … n - 1, one of each group in turn, in order within a group.

    Example:
        >>> from tpcal.calibrate.measure import in_turns
        >>> in_turns(["a", "a", "a", "b"])
        [0, 3, 1, 2]
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    turns = zip_longest(*(members[group] for group in sorted(members)))
    return [i for turn in turns for i in turn if i is not None]
