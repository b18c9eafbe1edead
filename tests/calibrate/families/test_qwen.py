"""Replays on families with images of any size: positions, DeepStack and experts as in production."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from tpcal.plans.families.generic import FAMILY as GENERIC
from tpcal.plans.laws import Case
from tpcal.plans.plan_records import Condition, Cut

NAMES = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_omni_moe",
    "glm4v",
    "glm4v_moe",
    "glm46v",
    "glm_ocr",
    "paddleocr_vl",
    "qwen2_5_omni",
    "video_llama_3",
    "exaone4_5",
    "ernie4_5_vl_moe",
]
PLANS = {
    "one cut": (Cut(3, 0.25, "attention"),),
    "within DeepStack": (Cut(1, 0.5, "attention"), Cut(2, 0.25, "grid")),
    "before the decoder": (Cut(0, 0.3, "random"), Cut(4, 0.0)),
    "conditional": (Cut(2, 0.5, "dart"), Cut(4, 0.0, condition=Condition(0.35, 0.9))),
}
ANSWERS = [[21, 22, 23], [31, 32, 33], [41, 42, 43], [51, 52, 53]]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def encoded(tiny: Case, rows: Sequence[int]) -> Encoded:
    """What calibration makes of prompts that a processor padded on the left."""
    prompts = tiny.batch([tiny.rows[row] for row in rows], "left")
    return _teacher_forced(prompts, [ANSWERS[row] for row in rows], tiny.pad_id)


@lru_cache(maxsize=1)  # the plans of a model follow each other
def unpruned(name: str) -> Unpruned:
    """The pass that all plans of a model share."""
    tiny = case(name, "sdpa")
    return Unpruned.of(tiny, encoded(tiny, range(4)))


def production(
    tiny: Case, rows: Sequence[int], cuts: tuple[Cut, ...]
) -> tuple[Tensor, tuple[CutRecord, ...]]:
    """Answer logits [B, A + 1, V] of a prefill and cached decoding under the plan."""
    inputs = tiny.batch([tiny.rows[row] for row in rows], "left")
    return decoded(tiny, inputs, torch.tensor([ANSWERS[row] for row in rows]), cuts)


@pytest.mark.parametrize("cuts", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", NAMES)
def test_a_replay_gives_the_answer_logits_of_production(name, cuts):
    gives_what_production_gives(
        unpruned(name), cuts, production(case(name, "sdpa"), range(4), cuts)
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_that_keeps_everything_equals_the_recording(name):
    tiny = case(name, "eager")
    batch = encoded(tiny, range(4))
    tape = recorded(tiny, batch)
    keeping_all_changes_nothing(tape, batch, (0, 1, 3))


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_a_batch_of_words_only_replays_after_a_batch_with_images(name):
    """The model keeps the last rope deltas; they must not leak into prompts without images."""
    tiny = case(name, "sdpa")
    both = encoded(tiny, range(4))
    Tape.record(tiny.model, both.inputs, prompt_length=both.prompt_length)
    words = encoded(tiny, [2])
    tape = Tape.record(tiny.model, words.inputs, prompt_length=words.prompt_length)
    replayed = tape.replay([Cut(2, 0.0)], words.positions)
    assert torch.equal(replayed.logits, tape.logits(words.positions))
    logits, _ = production(tiny, [2], (Cut(2, 0.0),))
    assert (replayed.logits - logits).abs().max() <= close(tiny.model, words)


def test_a_model_without_a_family_numbers_its_prompts_itself():
    """Calibration pads on the right, where rotary positions in three parts must not be flattened."""
    tiny = case("qwen2_vl", "sdpa")
    batch = encoded(tiny, range(4))
    assert "position_ids" not in GENERIC.numbered(batch.inputs)
    left = GENERIC.numbered(tiny.batch(tiny.rows, "left"))
    assert left["position_ids"][2].tolist() == [0] * 29 + list(range(8))
