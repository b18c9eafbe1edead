"""The position offset of a prompt in models with M-RoPE, kept with the prompt's cache.

An image takes fewer positions than tokens, so text after it counts on from a smaller number.
Models of the Qwen-VL kind keep this offset, `rope_deltas`, on the model itself. Conversations that
alternate, and threads, would read each other's. While a plan is applied, the two methods that read
and write it run on a twin of the model with the offset of the sequence at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar
from weakref import ref

from torch import nn
from transformers import Cache

from tpcal.plans.executor import compat, compiled
from tpcal.plans.executor.cache import is_empty
from tpcal.plans.executor.calls import Call, running
from tpcal.plans.images import encoded

_MARK = "_tpcal_rope_deltas"
_COMPUTE, _PREPARE = "compute_3d_position_ids", "_prepare_position_ids_for_generation"
_GENERATED: ContextVar[tuple[Any, Any] | None] = ContextVar("tpcal_rope_deltas", default=None)
"""What `generate` computed before it made a cache: the handle, as a reference, and the offset."""

M = TypeVar("M", bound=nn.Module)


def keep(model: nn.Module, base: nn.Module, handle: object, undo: ExitStack) -> None:
    """Keeps offsets with the sequences that they belong to, if the model has any.

    Args:
        model: The model.
        base: Its base.
        handle: What calls of the base run under.
        undo: Stack that reverts the change when it is closed.
    """
    if "rope_deltas" not in vars(base) or not hasattr(base, _COMPUTE):
        return
    encoded.exchange(base, _COMPUTE, _computing(base, handle), undo)
    if hasattr(model, _PREPARE) and any(part is base for part in model.children()):
        encoded.exchange(model, _PREPARE, _preparing(model, base, handle), undo)


def note(call: Call, output: Any) -> None:
    """Stores the offset of a sequence in the cache that a decoder returned.

    Args:
        call: The call of the decoder.
        output: Its output.
    """
    found, generated = None if call.outer is None else call.outer.rope_deltas, _GENERATED.get()
    if generated is not None and call.n_new:
        _GENERATED.set(None)
        if found is None and generated[0]() is call.handle:
            found = generated[1:]
    if found is not None:
        for cache in compat.caches_in(output):
            setattr(cache, _MARK, found[0])


def _computing(base: nn.Module, handle: object) -> Callable[..., Any]:
    """The method of the base that a pass without position ids calls."""
    method = getattr(type(base), _COMPUTE)

    @compiled.outside
    @wraps(method)
    def computed(*args: Any, **kwargs: Any) -> Any:
        twin = twin_of(base)
        # A pass of embeddings without a cache has nothing else to go by than the last prompt.
        last = base.rope_deltas if kwargs.get("input_ids") is None else None
        twin.rope_deltas = _stored(compat.given_cache(kwargs), base, last)
        position_ids = method(twin, *args, **kwargs)
        base.rope_deltas = twin.rope_deltas
        call = running(handle)
        if call is not None:
            call.rope_deltas = (twin.rope_deltas,)
        return position_ids

    return computed


def _preparing(model: nn.Module, base: nn.Module, handle: object) -> Callable[..., Any]:
    """The method of the model that `generate` calls once."""
    method = getattr(type(model), _PREPARE)

    @wraps(method)
    def prepared(inputs: Any, model_kwargs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        twin, part = twin_of(model), twin_of(base)
        twin._modules = {k: part if m is base else m for k, m in model._modules.items()}
        cache = compat.given_cache(model_kwargs)
        part.rope_deltas = _stored(cache, base, None)
        position_ids = method(twin, inputs, model_kwargs, *args, **kwargs)
        base.rope_deltas = part.rope_deltas
        if is_empty(cache):
            _GENERATED.set((ref(handle), part.rope_deltas))
        else:
            setattr(cache, _MARK, part.rope_deltas)
        return position_ids

    return prepared


def twin_of(module: M) -> M:
    """An object with the same parts, whose own attributes can be set apart."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    return twin


def _stored(cache: Cache | None, base: nn.Module, last: Any) -> Any:
    """The offset of the sequence in a cache; ``last`` if it begins one."""
    return last if is_empty(cache) else getattr(cache, _MARK, base.rope_deltas)
