"""What calibration does on a GPU: pinned recordings, peak memory, running out of it, times."""

from __future__ import annotations

from time import perf_counter

import gpu_cases
import pytest
import torch

from tpcal.calibrate.bench.peak_memory import peak_bytes
from tpcal.calibrate.bench.token_times import now
from tpcal.calibrate.inputs.memory_guard import memory_guard
from tpcal.calibrate.tape import Tape
from tpcal.calibrate.tape_store import Store
from tpcal.calibrate.timing import Clock, examples, run
from tpcal.plans.errors import RunFailed
from tpcal.plans.plan_records import Cut

pytestmark = pytest.mark.gpu

CUTS = (Cut(1, 0.5, "attention"), Cut(2, 0.25, "grid"))


@pytest.mark.parametrize("room", [None, 0], ids=["pinned", "disk"])
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_kept_recording_replays_bit_for_bit(
    gpu: torch.device, name: str, room: int | None
) -> None:
    case = gpu_cases.case(name, "sdpa", gpu)
    tape = Tape.record(case.model, case.batch(case.rows), every_layer=False)
    positions = torch.tensor([[3, 5]] * len(case.rows))
    wanted = tape.replay(CUTS, positions).logits
    kept = Store(room).keep(tape.recording.of_layer_0())
    del tape
    for _ in range(2):
        again = Tape(case.model, kept.load()).replay(CUTS, positions).logits
        assert again.device.type == gpu.type
        assert torch.equal(again, wanted)


def test_pinned_memory_is_as_much_as_was_counted(gpu: torch.device) -> None:
    before, store = pinned_bytes(gpu), Store()
    kept = [store.keep(torch.zeros(3 * 2**20 + 1, device=gpu)) for _ in range(4)]
    assert len(kept) == 4
    assert pinned_bytes(gpu) - before <= store.host_bytes


def pinned_bytes(device: torch.device) -> int:
    """Bytes of pinned memory that torch has taken from the host."""
    if device.type != "cuda":
        return 0
    stats = torch.cuda.host_memory_stats()
    return stats["allocated_bytes.current"]


def test_peak_memory_is_that_of_the_work(gpu: torch.device) -> None:
    def work() -> None:
        held = torch.zeros(2**22, device=gpu)
        held.add_(1)

    peak = peak_bytes(gpu, work)
    assert peak is not None
    assert 2**24 <= peak < 2**25


def test_running_out_of_memory_is_one_error_and_the_device_goes_on(gpu: torch.device) -> None:
    with pytest.raises(RunFailed, match="ran out of memory"), memory_guard("It", "Stop."):
        torch.zeros(2**46, device=gpu)
    assert int(torch.ones(4, device=gpu).sum()) == 4


def test_times_wait_for_the_device(gpu: torch.device) -> None:
    if gpu.type != "cuda":
        assert now(gpu) <= perf_counter()
        return
    x = torch.randn(8192, 8192, device=gpu)
    x @ x
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before = now(gpu)
    started.record()
    for _ in range(4):
        x @ x
    ended.record()
    took = now(gpu) - before
    assert took * 1000 >= started.elapsed_time(ended) > 5


def test_prefills_with_and_without_plans_can_be_timed(gpu: torch.device) -> None:
    case = gpu_cases.case("llava", "sdpa", gpu)
    clock = Clock(case.model, case.rows[0])
    plans = examples([Cut(1, 0.5, "diversity")], clock)
    decoders, prefills = run(clock, (4, 20), plans[:3])
    assert sorted(decoders) == [4, 20]
    assert all(0 < ms < 1000 for ms in [*decoders.values(), *prefills.values()])
