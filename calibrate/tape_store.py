"""Records of tensors kept off the device, in host memory up to a limit and beyond it on disk.

A record is loaded bit for bit as it was kept, on the device it came from. The file is temporary
and has no name, so it disappears with the process, however the process ends.

Three measures keep a record small. A tensor that occurs several times in a record is kept once. A
dimension that a tensor only repeats (stride 0, made by ``expand``) is kept once. An attention mask
of two values is kept as the places where its value changes, a few numbers a row.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from tpcal.plans.errors import RunFailed

R = TypeVar("R")
Change = Callable[[Any], Any]


class Store:
    """Keeps records: dataclasses, mappings, lists and tuples with tensors anywhere in them.

    Args:
        host_bytes: Host memory to use at most. Tensors beyond it go to a file in the folder for
            temporary files (TMPDIR). Tensors from a CUDA device are kept in pinned memory. None
            sets no limit.
    """

    def __init__(self, host_bytes: float | None = None) -> None:
        self._most = float("inf") if host_bytes is None else host_bytes
        self.host_bytes = 0
        """Bytes of host memory in use."""
        self._disk: _Disk | None = None

    def keep(self, record: R) -> StoredRecord[R]:
        """The record with its tensors moved off the device.

        Raises:
            RunFailed: The disk is full.
        """
        return StoredRecord(_mapped(record, self._slot, {}))

    def has_room(self, record: Any) -> bool:
        """Whether the record fits into host memory.

        A tensor that occurs several times counts once; a mask counts in full, as if it were not
        compressed.
        """
        sizes: dict[int, int] = {}

        def measured(tensor: Tensor) -> Tensor:
            sizes[id(tensor)] = _host_bytes(_core(tensor))
            return tensor

        _mapped(record, measured, {})
        return self.host_bytes + sum(sizes.values()) <= self._most

    def _slot(self, tensor: Tensor) -> _Slot:
        # Drop repeated dimensions, compress a mask of two values, place what is left.
        core = _core(tensor)
        changes, runs = _Runs.of(core) or (core, None)
        return _Slot(self._placed(changes), tensor.shape, tensor.device, runs)

    def _placed(self, tensor: Tensor) -> Tensor | _OnDisk:
        if self.host_bytes + _host_bytes(tensor) > self._most:
            self._disk = self._disk or _Disk()
            return self._disk.written(tensor)
        self.host_bytes += _host_bytes(tensor)
        if tensor.device.type == "cpu":
            return tensor
        pinned = tensor.device.type == "cuda"
        return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


@dataclass(frozen=True)
class StoredRecord(Generic[R]):
    """A record whose tensors are in a `Store`."""

    _record: Any

    def load(self) -> R:
        """The record with its tensors on their device; one that occurs twice is one tensor."""
        loaded: R = _mapped(self._record, _Slot.tensor, {})
        return loaded


class _Disk:
    """A temporary file without a name; it is closed when no kept tensor refers to it."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="tpcal-")  # noqa: SIM115  # outlives this call
        weakref.finalize(self, self.file.close)

    def written(self, tensor: Tensor) -> _OnDisk:
        """Appends the tensor to the file.

        Raises:
            RunFailed: The disk is full.
        """
        source = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
        try:
            place = self.file.seek(0, os.SEEK_END)
            source.tofile(self.file)
            self.file.flush()
        except OSError as error:
            raise RunFailed(
                f"Recorded samples must fit into memory or into {tempfile.gettempdir()}; got "
                f"{error.strerror or error}. Set TMPDIR to a larger disk, or take fewer --samples."
            ) from error
        return _OnDisk(self, place, source.nbytes, tensor.dtype, tensor.shape)


@dataclass(frozen=True)
class _OnDisk:
    """A tensor in a file."""

    disk: _Disk
    place: int
    n_bytes: int
    dtype: torch.dtype
    shape: torch.Size

    def tensor(self) -> Tensor:
        """The tensor, read from the file."""
        self.disk.file.seek(self.place)
        found = np.fromfile(self.disk.file, np.uint8, self.n_bytes)
        return torch.from_numpy(found).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Runs:
    """The values and the shape of a mask of two values; with its changes it gives the mask.

    A row of an attention mask consists of few runs of equal values: ``[0 0 1 1 1 0]`` starts low
    and changes at columns 2 and 5, so two numbers stand for six. A row that starts high has a
    change at column 0.
    """

    low: Tensor
    high: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, mask: Tensor) -> tuple[Tensor, _Runs] | None:
        """[n] indices in the flat mask [B, 1, S, M] at which a row starts high or changes.

        They come with the mask's values and shape. Returns None if the tensor is no mask of two
        values, or if the indices would take as much memory as the mask.
        """
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.numel() == 0:
            return None
        low, high = mask.amin(), mask.amax()
        is_high = mask == high
        if not bool((is_high | (mask == low)).all()):
            return None
        # change[j] = is_high[j] xor is_high[j - 1], where the value before column 0 counts as low.
        change = is_high.clone()
        change[..., 1:] ^= is_high[..., :-1]
        changes = change.flatten().nonzero().squeeze(1)
        if mask.numel() < torch.iinfo(torch.int32).max:
            changes = changes.int()
        return (changes, cls(low, high, mask.shape)) if changes.nbytes < mask.nbytes else None

    def mask(self, changes: Tensor) -> Tensor:
        """The contiguous mask, from its changes, on their device."""
        # A value is high if the number of changes up to it, in its row, is odd. The sum may wrap
        # around in int8; a wrap keeps a number odd or even.
        change = torch.zeros(self.shape, dtype=torch.int8, device=changes.device)
        change.view(-1)[changes] = 1
        is_high = change.cumsum(dim=-1, dtype=torch.int8).bitwise_and_(1).bool()
        return torch.where(is_high, self.high, self.low)


@dataclass(frozen=True)
class _Slot:
    """A tensor's place in a `Store`, and what restores it from there."""

    kept: Tensor | _OnDisk
    shape: torch.Size
    device: torch.device
    runs: _Runs | None

    def tensor(self) -> Tensor:
        found = self.kept.tensor() if isinstance(self.kept, _OnDisk) else self.kept
        found = found.to(self.device, non_blocking=True)
        return (found if self.runs is None else self.runs.mask(found)).expand(self.shape)


def _host_bytes(tensor: Tensor) -> int:
    """Bytes of host memory that keep the tensor; torch gives out pinned memory in powers of 2."""
    n_bytes: int = tensor.nbytes
    return n_bytes if tensor.device.type != "cuda" else 1 << max(n_bytes - 1, 0).bit_length()


def _core(tensor: Tensor) -> Tensor:
    """The tensor with every dimension that it only repeats (stride 0) reduced to length 1."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor[tuple(slice(0, 1 if step == 0 and n > 1 else n) for n, step in pairs)]


def _mapped(value: Any, change: Change, known: dict[int, tuple[Any, Any]]) -> Any:
    """The value with every tensor and slot changed; an object that occurs twice changes once."""
    if id(value) not in known:
        # The value itself is kept as well, so that its id is not given to another object.
        known[id(value)] = _changed(value, change, known), value
    return known[id(value)][0]


def _changed(value: Any, change: Change, known: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, Tensor | _Slot):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change, known) for key, item in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_mapped(item, change, known) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in fields(value) if f.init]
        return replace(value, **{n: _mapped(getattr(value, n), change, known) for n in names})
    return value
