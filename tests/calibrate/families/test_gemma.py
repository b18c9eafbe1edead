"""Replays on families with windows, chunks, prefixes, shared keys and bounded logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from replays import (
    Unpruned,
    close,
    decoded,
    gives_what_production_gives,
    keeping_all_changes_nothing,
    recorded,
)
from tiny import case
from torch import Tensor

from tpcal.calibrate.inputs.batches import Encoded, _teacher_forced
from tpcal.calibrate.tape import Tape
from tpcal.plans.executor.report import CutRecord
from tpcal.plans.laws import Case
from tpcal.plans.plan_records import Condition, Cut

NAMES = [
    "gemma3",
    "gemma3_wide",
    "gemma4",
    "gemma4_shared",
    "paligemma",
    "paligemma2",
    "llama4",
    "aya_vision",
    "cohere2_vision",
]
PLANS = {
    "one cut": (Cut(3, 0.25, "attention"),),
    "two cuts": (Cut(1, 0.5, "attention"), Cut(2, 0.25, "grid")),
    "before the decoder": (Cut(0, 0.3, "random"), Cut(3, 0.0)),
    "conditional": (Cut(2, 0.5, "dart"), Cut(3, 0.0, condition=Condition(0.35, 0.9))),
}
ANSWERS = torch.tensor([[41, 42, 43], [51, 52, 53], [61, 62, 63], [71, 72, 73]])


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def encoded(tiny: Case) -> Encoded:
    """What calibration makes of prompts that a processor padded on the left."""
    answer_type = tiny.appended.get("token_type_ids", 0)
    answers = ANSWERS[: len(tiny.rows)].tolist()
    return _teacher_forced(tiny.batch(tiny.rows), answers, tiny.pad_id, answer_type)


@lru_cache(maxsize=1)  # the plans of a model follow each other
def unpruned(name: str) -> Unpruned:
    """The pass that all plans of a model share."""
    tiny = case(name, "sdpa")
    return Unpruned.of(tiny, encoded(tiny))


def production(tiny: Case, cuts: tuple[Cut, ...]) -> tuple[Tensor, tuple[CutRecord, ...]]:
    """Answer logits [B, A + 1, V] of a prefill and cached decoding under the plan."""
    inputs = tiny.batch(tiny.rows)
    return decoded(tiny, inputs, ANSWERS[: len(tiny.rows)], cuts, logits_to_keep=1)


@pytest.mark.parametrize("cuts", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_a_replay_gives_the_answer_logits_of_production(name, cuts):
    gives_what_production_gives(unpruned(name), cuts, production(case(name, "sdpa"), cuts))


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_that_keeps_everything_equals_the_recording(name):
    tiny = case(name, "eager")
    batch = encoded(tiny)
    tape = recorded(tiny, batch)
    out = tiny.model(**batch.inputs, position_ids=tiny.numbered(batch.inputs))
    rows = torch.arange(len(batch.positions))[:, None]
    different = (out.logits[rows, batch.positions] - tape.logits(batch.positions)).abs().max()
    assert different <= close(tiny.model, batch)
    keeping_all_changes_nothing(tape, batch, (0, 1, 3))


def test_a_replay_keeps_the_temperature_of_every_place():
    """Of Llama 4, whose temperatures count the padding too; so for one prompt without."""
    tiny = case("llama4_tempered", "sdpa")
    tiny = replace(tiny, rows=tiny.rows[1:2])
    batch, cuts = encoded(tiny), (Cut(1, 0.5, "grid"), Cut(5, 0.2, "grid"))
    tape = Tape.record(tiny.model, batch.inputs, prompt_length=batch.prompt_length)
    logits, _ = production(tiny, cuts)
    assert (tape.replay(cuts, batch.positions).logits - logits).abs().max() <= close(
        tiny.model, batch
    )
