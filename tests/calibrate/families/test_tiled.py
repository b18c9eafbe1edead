"""Replays on families that see tiles, resampled tokens or features between layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from replays import Unpruned, gives_what_production_gives, keeping_all_changes_nothing, recorded
from tiny import case
from torch import Tensor

from tpcal.calibrate.inputs.batches import Encoded, _teacher_forced
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.laws import Case
from tpcal.plans.plan_records import Cut, Plan

LATE = (Cut(3, 0.5, "attention"), Cut(5, 0.25, "grid"))
EARLY = (Cut(0, 0.6, "random"), Cut(1, 0.4, "grid"), Cut(2, 0.2, "attention"))
NAMES = ["idefics3", "internvl", "ovis2", "aria", "granite_docling", "granite4_vision"]
PLANS = [
    (name, cuts)
    for name in NAMES
    for cuts in (LATE, EARLY)
    if (name, cuts) != ("granite4_vision", EARLY)
]
ANSWERS = [[41, 42, 43], [51, 52, 53], [61, 62, 63], [71, 72, 73]]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def encoded(tiny: Case) -> Encoded:
    """What calibration makes of prompts that a processor padded on the left."""
    return _teacher_forced(tiny.batch(tiny.rows, "left"), ANSWERS, tiny.pad_id)


@lru_cache(maxsize=1)  # the plans of a model follow each other
def unpruned(name: str) -> Unpruned:
    """The pass that all plans of a model share."""
    tiny = case(name, "sdpa")
    return Unpruned.of(tiny, encoded(tiny))


def production(tiny: Case, cuts: tuple[Cut, ...]) -> tuple[Tensor, tuple[CutRecord, ...]]:
    """Answer logits [B, A + 1, V] of `generate` that is made to give the answers."""
    inputs = tiny.batch(tiny.rows, "left")
    answers = torch.tensor(ANSWERS)
    n = inputs["input_ids"].shape[1]

    def answer(row: int, ids: Tensor) -> list[int]:
        step = len(ids) - n
        return [int(answers[row, step])] if step < answers.shape[1] else list(range(30, 90))

    with apply(tiny.model, Plan(cuts)) as handle:
        out = tiny.model.generate(
            **inputs,
            max_new_tokens=answers.shape[1] + 1,
            do_sample=False,
            prefix_allowed_tokens_fn=answer,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert handle.last is not None
        return torch.stack(out.logits, dim=1), handle.last.cuts


@pytest.mark.parametrize(("name", "cuts"), PLANS)
def test_a_replay_gives_the_answer_logits_of_production(name, cuts):
    gives_what_production_gives(unpruned(name), cuts, production(case(name, "sdpa"), cuts))


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_that_keeps_everything_equals_the_recording(name):
    tiny = case(name, "eager")
    batch = encoded(tiny)
    tape = recorded(tiny, batch)
    keeping_all_changes_nothing(tape, batch, (3,) if name == "granite4_vision" else (0, 1, 3))
