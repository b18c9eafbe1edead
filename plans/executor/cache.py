"""KV caches that a plan can run with, and what their layers hold."""

from __future__ import annotations

from typing import Any

from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat, kernels
from tpcal.plans.executor.pruned_layers import (
    PRUNED,
    PrunedKV,
    PrunedSlidingKV,
    is_quantized,
)
from tpcal.plans.executor.static_cache import STATIC, DynamicCopy, upcoming

_KNOWN = {DynamicLayer, DynamicSlidingWindowLayer, *PRUNED, *STATIC, *compat.KEYLESS}


def cache_layer(cache: Cache | None, layer: int) -> DynamicLayer | None:
    """The cache layer of decoder layer ``layer``; made here if the cache makes layers lazily."""
    if cache is None:
        return None
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= layer:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[layer]


def is_static(cache: Cache | None) -> bool:
    """Whether a layer of the cache is a buffer of fixed size."""
    return cache is not None and any(type(layer) in STATIC for layer in cache.layers)


def check_cache(cache: Cache | None) -> None:
    """Raises UsageError if a plan cannot run with this cache."""
    if cache is None:
        return
    made = cache.layer_class_to_replicate
    kinds = {type(layer) for layer in cache.layers} | ({made} if made is not None else set())
    unknown = sorted(
        kind.__name__ for kind in kinds if kind not in _KNOWN and not is_quantized(kind)
    )
    if is_static(cache) and getattr(cache, "offloading", False):
        unknown.append("a static cache that is offloaded")
    if unknown:
        raise UsageError(
            "The KV cache must have dynamic, sliding, static or quantized layers to run a plan; "
            f"got {', '.join(unknown)}. Leave out cache_implementation, or "
            f"pass {compat.CACHE_NAME}=DynamicCache()."
        )


def stand_in(cache: Cache | None, length: int, *, prunes: bool, kernel: str) -> DynamicCopy | None:
    """The copy of a static cache that a pass must run on; None if it needs none.

    Args:
        cache: The cache of the pass.
        length: Number of its tokens.
        prunes: Whether the pass drops tokens.
        kernel: Name of the attention kernel.

    Raises:
        UsageError: A plan cannot run with this cache and kernel, or the cache has no room.
    """
    if cache is None or length == 1 or not is_static(cache):
        return None
    if not prunes and not holds_dropped(cache):
        return None
    check_cache(cache)
    if not kernels.has_whole_masks(kernel):
        raise UsageError(
            "A static cache must go with the attention implementation sdpa or eager to run a "
            f"plan; got {kernel}. Leave out cache_implementation, or call "
            'model.set_attn_implementation("sdpa").'
        )
    return DynamicCopy(cache, length)


def is_empty(cache: Cache | None) -> bool:
    """Whether a pass with this cache begins a sequence.

    A static cache counts its tokens on the device. It is asked only where its layers do not tell,
    so that a decode step of a pruned prompt does not wait.
    """
    return cache is None or not (holds_dropped(cache) or cache.get_seq_length())


def holds_dropped(cache: Cache | None) -> bool:
    """Whether a layer of the cache has seen tokens and was pruned."""
    layers = () if cache is None else cache.layers
    return any(
        layer.held.n_seen > 0 if isinstance(layer, PrunedKV) else upcoming(layer) is not None
        for layer in layers
    )


def needs_mask(cache: Cache | None) -> bool:
    """Whether one more token needs a mask: a pruned layer is static, has filler or a window."""
    layers = () if cache is None else cache.layers
    return any(_needs_mask(layer) for layer in layers)


def _needs_mask(layer: Any) -> bool:
    if not isinstance(layer, PrunedKV):
        return upcoming(layer) is not None
    return isinstance(layer, PrunedSlidingKV) or layer.held.has_mask


def kv_bytes(cache: Cache) -> list[int]:
    """[L] bytes of K and V in each layer for all rows, filler of ragged rows included.

    Of a static layer, the bytes of its buffers. What a layer has quantized is not counted.
    """
    return [
        0 if layer.keys is None else layer.keys.nbytes + layer.values.nbytes
        for layer in cache.layers
    ]
