"""What holds for calibration's replays beside the executor's own passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tpcal.calibrate.batches import Encoded
from tpcal.calibrate.tape import Tape
from tpcal.plans.forward import CutRecord
from tpcal.plans.laws import Case
from tpcal.plans.schema import Cut

CLOSE = 1e-5


def recorded(tiny: Case, batch: Encoded) -> Tape:
    """The tape of a teacher-forced batch."""
    return Tape.record(tiny.model, batch.inputs, prompt_length=batch.prompt_length)


def gives_what_production_gives(
    tiny: Case,
    batch: Encoded,
    cuts: tuple[Cut, ...],
    production: tuple[Tensor, tuple[CutRecord, ...]],
    textual: int = 2,
) -> None:
    """A replay keeps the same tokens and gives the same answer logits; the plan is seen.

    Args:
        tiny: The model.
        batch: Its prompts with answers.
        cuts: The plan.
        production: Answer logits [B, A + 1, V] and cuts of the executor.
        textual: The prompt without an image.
    """
    tape = recorded(tiny, batch)
    replayed = tape.replay(cuts, batch.positions)
    logits, records = production
    assert [r.kept for r in replayed.records] == [r.kept for r in records]
    assert (replayed.logits - logits).abs().max() <= CLOSE
    changed = (tape.logits(batch.positions) - replayed.logits).abs().amax(dim=(1, 2))
    assert changed[[row for row in range(len(changed)) if row != textual]].max() > 1000 * CLOSE
    assert changed[textual] <= CLOSE


def keeping_all_changes_nothing(tape: Tape, batch: Encoded, layers: Sequence[int]) -> None:
    """A replay with a cut that keeps everything equals the recording bit by bit."""
    for layer in layers:
        replayed = tape.replay([Cut(layer, 1.0, "random")], batch.positions)
        assert torch.equal(replayed.logits, tape.logits(batch.positions))
        assert torch.equal(replayed.first_output, tape.state(layer + 1))
