"""Numbers from the host on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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


def all_on_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on the device, those from the CPU in one transfer.

    Args:
        tensors: Tensors of one device; those whose numbers have more bytes come first.
        device: Where they go.
    """
    if device.type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    # All of them travel as the bytes of one buffer, of which the results are views.
    parts = [tensor.contiguous().view(torch.uint8).flatten() for tensor in tensors]
    together = on_device(torch.cat(parts), device).split([len(part) for part in parts])
    return [
        part.view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(together, tensors, strict=True)
    ]


@lru_cache(maxsize=64)
def row_numbers(n_rows: int, device: torch.device) -> Tensor:
    """[B, 1] int64 numbers of the rows, made once for each device."""
    with torch.inference_mode(False):
        return torch.arange(n_rows, device=device)[:, None]
