"""Samples with a recorded run of the unpruned model, on which changed runs are measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tpcal.calibrate.deviation import answer_deviation, log_probabilities
from tpcal.calibrate.inputs.batches import encode
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.samples import Samples
from tpcal.calibrate.tape import Tape
from tpcal.planner.prediction.objective import MOST
from tpcal.plans.plan_records import Cuts

Losses = tuple[NDArray[np.float32], NDArray[np.bool_]]


class ReplayedQuestions:
    """Measures what cuts lose while something else about the model is changed, too.

    Attributes:
        loaded: The model.
        groups: [n] group of each sample.
        n_batches: Number of batches of samples.
    """

    def __init__(self, loaded: Loaded, samples: Samples, batch_size: int) -> None:
        self.loaded = loaded
        self.groups = np.array(samples.sample_groups)
        starts = range(0, len(samples), batch_size)
        parts = [samples.part(start, start + batch_size) for start in starts]
        self._batches = [self._record(part) for part in parts]
        self.n_batches = len(self._batches)

    def replayed(
        self,
        cuts: Cuts,
        changed: Callable[[Tape], AbstractContextManager[None]],
        n_batches: int | None = None,
    ) -> Losses:
        """[n] nats per answer token, at most `MOST`, and [n] whether the answer changed.

        Args:
            cuts: At least one cut.
            changed: Changes the model while a tape is replayed.
            n_batches: Only so many of the batches; None: all.
        """
        found = []
        with torch.inference_mode():
            for tape, answer, positions, valid in self._batches[:n_batches]:
                with changed(tape):
                    made = tape.replay(cuts, positions).logits
                full, pruned = log_probabilities(tape.head(answer)), log_probabilities(made)
                found.append(answer_deviation(full, pruned, valid))
        nats = torch.cat([kl for kl, _ in found]).clamp(max=MOST)
        return nats.numpy(), torch.cat([flips for _, flips in found]).bool().numpy()

    def _record(self, samples: Samples) -> tuple[Tape, Tensor, Tensor, Tensor]:
        model = self.loaded.model
        with torch.inference_mode():
            encoded = encode(self.loaded.processor, list(samples), model)
            tape = Tape.record(model, encoded.inputs, prompt_length=encoded.prompt_length)
        return tape, tape.answer_states(encoded.positions), encoded.positions, encoded.valid


def seen(mask: Tensor | None, columns: Tensor) -> Tensor:
    """[..., S, S] bool, which columns a query sees, from the mask that an attention module gets.

    Args:
        mask: The mask of the kernel sdpa; None if causal order is the only rule.
        columns: [B, S] of anything.
    """
    if mask is None:
        n = columns.shape[1]
        return torch.ones(n, n, dtype=torch.bool, device=columns.device).tril()
    assert mask.dtype == torch.bool, "sdpa gets masks of bools"
    return mask
