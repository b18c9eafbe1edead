"""Recorded batches that are kept off the device come back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from models import batch, prompt, tiny_llava
from tiny import case, names
from torch import Tensor

from benchmarks.emulated_gpu import EmulatedGpu
from tpcal.calibrate.inputs.batches import _teacher_forced
from tpcal.calibrate.tape import Tape
from tpcal.calibrate.tape_store import Store
from tpcal.plans.plan_records import Cut

ANSWERS = [[41, 42, 43], [51, 52], [61, 62, 63], [71]]
CUTS = (Cut(1, 0.5, "attention"), Cut(2, 0.25, "grid"))
NOWHERE = 0
"""Bytes of host memory: all goes to the disk."""


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Record:
    """Something to keep."""

    tensors: Any


def ragged(name: str, attention: str) -> tuple[Tape, Tensor]:
    """A recorded batch of uneven prompts, and where its answers stand."""
    tiny = case(name, attention)
    answers = ANSWERS[: len(tiny.rows)]
    answer_type = tiny.appended.get("token_type_ids", 0)
    rows = _teacher_forced(tiny.batch(tiny.rows), answers, tiny.pad_id, answer_type)
    tape = Tape.record(
        tiny.model, rows.inputs, prompt_length=rows.prompt_length, every_layer=False
    )
    return tape, rows.positions


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, "sdpa") for name in names()), ("gemma3", "eager"), ("llava", "eager")],
)
def test_a_kept_recording_replays_bit_for_bit(name: str, attention: str) -> None:
    tape, positions = ragged(name, attention)
    answer, wanted = tape.answer_states(positions), tape.replay(CUTS, positions)
    for room in (None, NOWHERE):
        kept = Store(room).keep((tape.recording.of_layer_0(), answer))
        recording, states = kept.load()
        again = Tape(tape._model, recording)
        assert torch.equal(again.head(states), tape.logits(positions))
        assert torch.equal(again.replay(CUTS, positions).logits, wanted.logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_mask_and_no_last_output_is_kept(attention: str) -> None:
    inputs = batch([prompt(3, 0, 400), prompt(2, 0, 380), prompt(2, 0, 9)], side="right")
    tape = Tape.record(tiny_llava(attention), inputs, every_layer=False)
    store = Store()
    store.keep(tape.recording.of_layer_0())
    assert store.host_bytes < 1.7 * tape.state(0).nbytes  # with both it was over 4 times


MASKS = {
    "causal": torch.ones(2, 1, 9, 9).tril().bool(),
    "padded": torch.ones(2, 1, 9, 9).tril().bool() & (torch.arange(9) < 6),
    "sliding": torch.ones(1, 1, 300, 300).tril().bool() & ~torch.ones(300, 300).tril(-3).bool(),
    "prefix": torch.ones(2, 1, 9, 9).tril().bool() | (torch.arange(9) < 4),
    "additive": torch.zeros(2, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -3e38),
    "half": torch.zeros(1, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), -6e4).half(),
    "all": torch.ones(2, 1, 5, 5).bool(),
    "none": torch.zeros(2, 1, 5, 5).bool(),
    "three values": torch.arange(3.0).expand(2, 1, 3, 3).contiguous(),
    "repeated": torch.ones(1, 1, 9, 9).tril().bool().expand(4, 1, 9, 9),
    "uneven": torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0)) < 0.5,
}


@pytest.mark.parametrize("room", [None, NOWHERE])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_come_back(mask: Tensor, room: int | None) -> None:
    (found,) = Store(room).keep((mask,)).load()
    assert found.dtype == mask.dtype
    assert torch.equal(found, mask)


@pytest.mark.parametrize("room", [None, NOWHERE])
def test_records_of_any_form_come_back(room: int | None) -> None:
    shared = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    once = {"shared": shared}
    record = Record(
        [(shared, None, 3, "text"), once, {7: once}, torch.zeros(0, 4), torch.tensor(2.5)]
    )
    found = Store(room).keep(record).load().tensors
    assert torch.equal(found[0][0], shared)
    assert found[0][1:] == (None, 3, "text")
    assert found[1]["shared"] is found[0][0]  # one tensor, as layers gather it once for all
    assert found[2][7] is found[1]
    assert found[3].shape == (0, 4)
    assert found[4] == 2.5


def test_host_memory_is_used_up_to_its_limit() -> None:
    store = Store(1000)
    small, large = torch.zeros(100), torch.zeros(200)
    assert store.has_room(small)
    store.keep(small)
    assert store.has_room([small, small])  # 600 bytes are left for 400
    assert not store.has_room(large)
    assert torch.equal(store.keep(large).load(), large)  # on disk


def test_pinned_memory_counts_in_powers_of_two_as_torch_gives_it_out() -> None:
    with EmulatedGpu() as gpu:
        tensors = [gpu.put(torch.zeros(n)) for n in (1000, 1024, 1025)]
        store = Store(1.5 * 2**13)
        assert store.has_room(tensors[:2])
        assert not store.has_room(tensors)
    assert store.has_room(torch.zeros(3000))
