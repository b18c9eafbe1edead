"""The emulated GPU computes what the CPU does, and counts launches and waits of the host."""

from __future__ import annotations

import pytest
import torch

from benchmarks.emulated_gpu import EmulatedGpu


@pytest.mark.parametrize("inference", [True, False])
def test_launches_and_reads_are_counted_and_views_are_not(inference: bool) -> None:
    with torch.inference_mode(inference), EmulatedGpu() as gpu:
        x = gpu.put(torch.arange(6.0))
        total = (2 * x.view(2, 3)).sum().item()
    assert total == 30
    assert (gpu.launches.total(), gpu.syncs.total()) == (2, 1)


def test_data_that_goes_to_the_device_makes_the_host_wait() -> None:
    with EmulatedGpu() as gpu:
        made = torch.tensor([1, 2], device="cuda")
        assert made.device.type == "cuda"
    assert gpu.syncs.total() == 1


def test_a_mask_as_index_makes_the_host_wait() -> None:
    with EmulatedGpu() as gpu:
        x = gpu.put(torch.arange(3))
        found = x[gpu.put(torch.tensor([True, False, True]))].tolist()
    assert found == [0, 2]
    assert gpu.syncs.total() == 2


def test_no_machine_has_its_device() -> None:
    # What code keeps for each device, as grid keeps its curves, must not be that of a real GPU.
    with EmulatedGpu() as gpu:
        made = (gpu.put(torch.arange(3)), torch.ones(3, device="cuda"))
    real = {torch.device("cuda", n) for n in range(16)}
    assert not real & {x.device for x in made}
