"""GPUs that exist only in name: their tensors compute on the CPU, and their work is counted.

Code that runs here takes the same branches as on a GPU, because tensors say that they are on
``cuda``. What a GPU would be asked to do is counted: operations that launch kernels, and places
where the host waits for the device. Nothing is said about time. There are as many devices as are
named, and an operation on tensors of two of them is an error, as it is on real ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 64)
"""The first device. No machine has one of this number, so that tables that code keeps for each
device are never those of a real GPU."""
_HOST = torch.device("cpu")
_READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
_SEARCHES = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_FREE = {
    *("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"),
    *("aten::new_empty_strided", "aten::lift_fresh", "aten::detach", "aten::_unsafe_view"),
}
_TO_HOST = {Tensor.cpu, Tensor.tolist, Tensor.numpy}
_WHOLE = {nn.functional.one_hot, nn.functional.embedding_bag}  # make tensors where no mode sees it
_FROM_DATA = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class GpuTensor(Tensor):
    """A tensor that says it is on a GPU, beside the one on the CPU that it computes with."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> GpuTensor:
        made: GpuTensor = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=held.device
        )
        made.held, made.place = held, place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device that is emulated."""
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """True."""
        return True

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else self.held, spec)

    def data_ptr(self) -> int:
        """Address of the first number."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was called outside of an EmulatedGpu.")


class EmulatedGpu(TorchDispatchMode):
    """Inside this context, work on tensors of the devices is carried out and counted.

    Attributes:
        launches: How often each operation was called that launches a kernel. One that launches
            several, as a sort does, counts once.
        syncs: How often the host waited for the device, by what made it wait.

    Example:
        >>> import torch
        >>> with EmulatedGpu() as gpu:
        ...     x = gpu.put(torch.arange(4.0))
        ...     total = (2 * x).sum().item()
        >>> dict(gpu.launches), dict(gpu.syncs)
        ({'aten::mul': 1, 'aten::sum': 1}, {'aten::_local_scalar_dense': 1})
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self._calls = _Calls(self)

    def __enter__(self) -> EmulatedGpu:
        # In inference mode the dispatcher would get composite functions whole.
        self._plain = torch.inference_mode(False)
        self._plain.__enter__()
        super().__enter__()
        self._calls.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._calls.__exit__(*error)
        super().__exit__(*error)
        self._plain.__exit__(*error)

    def put(self, value: Tensor, device: torch.device = DEVICE) -> GpuTensor:
        """The tensor on the device; putting it there is not counted."""
        return value if isinstance(value, GpuTensor) else GpuTensor(value.detach(), device)

    def put_fields(self, record: Any, device: torch.device = DEVICE) -> Any:
        """The instance of a dataclass with all tensors that are fields of it on the device."""
        given = {f.name: getattr(record, f.name) for f in fields(record)}
        there = {name: self.put(x, device) for name, x in given.items() if isinstance(x, Tensor)}
        return replace(record, **there)

    def put_module(self, module: nn.Module, device: torch.device = DEVICE) -> None:
        """Moves the weights and buffers of a module to the device; not counted either.

        What is on a device already stays there.
        """
        for part in module.modules():
            for values in (part._parameters, part._buffers):
                for name, value in values.items():
                    if value is not None:
                        part.__dict__.pop(name, None)
                        values[name] = self.put(value, device)  # type: ignore[assignment]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), func._schema.name
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = {id(x.held): x for x in given if isinstance(x, GpuTensor)}
        if not here:
            return func(*args, **kwargs)
        if name in _INDEXED and any(_is_mask(x) for x in tree_leaves(args[1])):
            self.syncs["a mask as index"] += 1
        if name in _READS or name in _SEARCHES:
            self.syncs[name] += 1
        elif len(places := {x.device for x in given if x.ndim or isinstance(x, GpuTensor)}) > 1:
            # Indices may be on the host.
            if name != "aten::copy_" and not (name in _INDEXED and len(places - {_HOST}) == 1):
                found = " and ".join(sorted(map(str, places)))
                raise RuntimeError(f"{name} was called with tensors on {found}.")
            if _HOST in places:
                self.syncs["a copy to the device"] += 1
        if name not in _FREE and name not in _READS and not _is_view(func):
            self.launches[name] += 1
        result = func(*_held(args), **_held(kwargs))
        place = next(x.place for x in given if isinstance(x, GpuTensor))
        return tree_map(lambda x: _on_device(x, place, here), result)


class _Calls(TorchFunctionMode):
    """What crosses between host and device, and what is made on the device."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        super().__init__()
        self._gpu = gpu
        self._pinned: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first: Any = args[0] if args else None
        target = _target(args, kwargs)
        if func is Tensor.pin_memory:
            return self._pinned.setdefault(id(first), first)
        if func in _TO_HOST and isinstance(first, GpuTensor):
            self._gpu.syncs[f"Tensor.{func.__name__}"] += 1
            return func(first.held, *args[1:], **kwargs)
        if func is Tensor.new_tensor and isinstance(first, GpuTensor):
            return self._made(func, (first.held, *args[1:]), kwargs, target or first.place)
        if func in _WHOLE and isinstance(first, GpuTensor):
            return self._made(func, args, kwargs, first.place)
        if func in (Tensor.to, Tensor.cuda) and target is not None:
            return self._moved(args, kwargs, target)
        if target is None or target.type != DEVICE.type or func is torch.device:
            return func(*args, **kwargs)
        return self._made(func, args, {**kwargs, "device": None}, target)

    def _moved(self, args: Any, kwargs: dict[str, Any], target: torch.device) -> Tensor:
        first, arrives = args[0], target.type == DEVICE.type
        kwargs.pop("device", None)
        others = [x for x in args[1:] if _target((x,), {}) is None]
        if first.device == target:
            return first.to(*others, **kwargs) if others or "dtype" in kwargs else first
        waits = not (kwargs.pop("non_blocking", False) and id(first) in self._pinned)
        if waits and not (arrives and isinstance(first, GpuTensor)):  # GPUs copy by themselves
            self._gpu.syncs[f"a copy {'to' if arrives else 'from'} the device"] += 1
        held = _held(first)
        held = held.to(*others, **kwargs) if others or "dtype" in kwargs else held
        return GpuTensor(held, target) if arrives else held

    def _made(self, func: Any, args: Any, kwargs: dict[str, Any], place: torch.device) -> Any:
        """A new tensor on the device, which no CUDA can be initialised for."""
        if func in _FROM_DATA:
            self._gpu.syncs[f"{func.__name__}(..., device=...)"] += 1
        elif not func.__name__.startswith("empty"):
            self._gpu.launches[func.__name__] += 1
        made = func(*_held(args), **_held(kwargs))
        return tree_map(lambda x: _on_device(x, place, {}), made)


def _target(args: Any, kwargs: Mapping[str, Any]) -> torch.device | None:
    """The device that a call names."""
    named = [kwargs.get("device"), *args]
    for x in named:
        if isinstance(x, str) and x.split(":")[0] in ("cpu", "cuda"):
            x = torch.device(x)
        if isinstance(x, torch.device):
            return DEVICE if x == torch.device("cuda") else x
    return None


def _held(tree: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, GpuTensor) else x, tree)


def _on_device(x: Any, place: torch.device, known: Mapping[int, GpuTensor]) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, GpuTensor):
        return x
    found = known.get(id(x))
    return GpuTensor(x, place) if found is None else found


def _is_view(func: Any) -> bool:
    returned = [value.alias_info for value in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def _is_mask(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)
