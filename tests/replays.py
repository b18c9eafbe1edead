"""What holds for calibration's replays beside the executor's own passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcal.calibrate.inputs.batches import Encoded
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.laws import Case
from tpcal.plans.laws.case import Inputs
from tpcal.plans.laws.rounding import allowed
from tpcal.plans.plan_records import Cut, Plan


def recorded(tiny: Case, batch: Encoded) -> Tape:
    """The tape of a teacher-forced batch."""
    return Tape.record(tiny.model, batch.inputs, prompt_length=batch.prompt_length)


def close(model: Any, batch: Encoded) -> float:
    """Largest difference of the unpruned model's answer logits that counts as none."""

    def run() -> Tensor:
        tape = Tape.record(model, batch.inputs, prompt_length=batch.prompt_length)
        return tape.logits(batch.positions)

    return allowed(model, run)


@dataclass(frozen=True, eq=False)
class Unpruned:
    """What the replays of all plans share, as those of a calibration do."""

    tiny: Case
    batch: Encoded
    """Prompts with answers."""
    tape: Tape
    most: float
    """Largest difference of answer logits that counts as none."""

    @classmethod
    def of(cls, tiny: Case, batch: Encoded) -> Unpruned:
        """The unpruned pass of a batch."""
        return cls(tiny, batch, recorded(tiny, batch), close(tiny.model, batch))


def decoded(
    tiny: Case, inputs: Inputs, answers: Tensor, cuts: tuple[Cut, ...], **prefill: Any
) -> tuple[Tensor, tuple[CutRecord, ...]]:
    """Answer logits [B, A + 1, V] of a prefill and cached decoding under the plan, and its cuts.

    Args:
        tiny: The model.
        inputs: Prompts padded on the left.
        answers: [B, A] tokens to feed.
        cuts: The plan.
        prefill: Further arguments of the prefill.
    """
    with apply(tiny.model, Plan(cuts)) as handle:
        out = tiny.model(**inputs, position_ids=tiny.numbered(inputs), use_cache=True, **prefill)
        assert handle.last is not None
        records = handle.last.cuts
        logits = [out.logits[:, -1]]
        for answer in answers.split(1, dim=1):
            inputs = tiny.extended(inputs, answer)
            out = tiny.model(
                input_ids=answer,
                attention_mask=inputs["attention_mask"],
                position_ids=tiny.numbered(inputs)[..., -1:],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            logits.append(out.logits[:, -1])
    return torch.stack(logits, dim=1), records


def gives_what_production_gives(
    unpruned: Unpruned,
    cuts: tuple[Cut, ...],
    production: tuple[Tensor, tuple[CutRecord, ...]],
    textual: int = 2,
) -> None:
    """A replay keeps the same tokens and gives the same answer logits; the plan is seen.

    Args:
        unpruned: The recorded pass.
        cuts: The plan.
        production: Answer logits [B, A + 1, V] and cuts of the executor.
        textual: The prompt without an image.
    """
    positions = unpruned.batch.positions
    replayed = unpruned.tape.replay(cuts, positions)
    logits, records = production
    assert [r.kept for r in replayed.records] == [r.kept for r in records]
    assert (replayed.logits - logits).abs().max() <= unpruned.most
    changed = (unpruned.tape.logits(positions) - replayed.logits).abs().amax(dim=(1, 2))
    others = [row for row in range(len(changed)) if row != textual]
    assert changed[others].max() > 1000 * unpruned.most
    assert changed[textual] <= unpruned.most


def keeping_all_changes_nothing(tape: Tape, batch: Encoded, layers: Sequence[int]) -> None:
    """A replay with a cut that keeps everything equals the recording bit by bit."""
    for layer in layers:
        replayed = tape.replay([Cut(layer, 1.0, "random")], batch.positions)
        assert torch.equal(replayed.logits, tape.logits(batch.positions))
        assert torch.equal(replayed.first_output, tape.state(layer + 1))
