"""Numbers that go from the host to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(
    numbers: Sequence[int] | Sequence[Sequence[int]] | Tensor, device: torch.device
) -> Tensor:
    """The numbers on the device.

    A GPU copies them from pinned memory while the host goes on. From other memory the host would
    wait for all work that the GPU has been given.
    """
    values = torch.as_tensor(numbers)
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
