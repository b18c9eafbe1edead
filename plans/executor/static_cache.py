"""Static caches under a plan: buffers of fixed sizes, as CUDA graphs and compiled steps need them.

A pass that prunes must hold a different number of tokens in each layer, and only the pass itself
finds out how many. Passes of several tokens therefore run on a dynamic copy of the cache, which is
then written into static buffers: those that the cache has, and shorter ones for layers that lost
tokens. A decode step runs on the buffers alone. It makes no tensor whose shape or values depend on
numbers that only the host knows, so a recorded step can be replayed.

A pruned buffer has a column for each token held and for each one that is still to come. For
example, a cache for 9 positions, of whose first 6 a layer holds four:

    column      0  1  2  3 | 4  5  6
    position    0  1  3  5 | 6  7  8

The position of every column is known in advance, also of those still empty, and the model's own
mask, which has a column for each of the 9 positions, hides the future. What a decode step needs of
it is a gather by a constant index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.kv_columns import Held
from tpcal.plans.executor.pruned_layers import PrunedKV, pruned


class PrunedStaticKV(StaticLayer):
    """A static cache layer with a buffer for the tokens held and those still to come.

    Args:
        held: The columns that are held.
        keys: [B, Hkv, n_held, d] K of them.
        values: [B, Hkv, n_held, d] V of them.
        capacity: Number of positions that the cache was made for.
    """

    is_croppable = True

    def __init__(self, held: Held, keys: Tensor, values: Tensor, capacity: int) -> None:
        super().__init__(max_cache_len=held.n_held + capacity - held.n_seen)
        self._capacity = capacity
        self._prompt: Held | None = held
        StaticLayer.update(self, keys, values)

    def held(self, n_seen: int) -> Held | None:
        """The columns held after so many positions were seen; None after `reset`."""
        return (
            None if self._prompt is None else self._prompt.extended(n_seen - self._prompt.n_seen)
        )

    def upcoming(self) -> Held | None:
        """All columns of the buffer, those still empty included; None after `reset`."""
        if self._prompt is None:
            return None
        return self._prompt.extended(self._capacity - self._prompt.n_seen)

    def get_seq_length(self) -> Tensor | int:
        """Number of tokens seen, not of tokens held; a tensor, as in other static layers."""
        n_gone = 0 if self._prompt is None else self._prompt.n_seen - self._prompt.n_held
        return super().get_seq_length() + n_gone

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and first position of the keys that the model makes its mask for."""
        return self._capacity, 0

    def get_max_length(self) -> int:
        """Number of positions that the cache was made for."""
        return self._capacity

    get_max_cache_shape = get_max_length  # its name before 5.13

    def reset(self) -> None:
        """Forgets everything; the layer is then as an unpruned one before its first prefill."""
        self._prompt, self.max_cache_len = None, self._capacity
        self.keys = self.values = None
        self.is_initialized = False
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the batch rows ``beam_idx``."""
        super().reorder_cache(beam_idx)
        if self._prompt is not None:
            self._prompt = self._prompt.selected(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` positions, which came after the pruned prompt.

        Args:
            tokens_to_remove: At most 0.

        Raises:
            UsageError: They reach into the prompt.
        """
        n_new = int(self.cumulative_length)
        if self._prompt is not None:
            n_new -= self._prompt.n_held
        if -tokens_to_remove > n_new:
            raise UsageError(
                f"A static cache of a pruned prompt can forget the {n_new} tokens after the "
                f"prompt; got {-tokens_to_remove}. Use a DynamicCache to forget more."
            )
        self.cumulative_length.add_(tokens_to_remove)


class PrunedStaticSlidingKV(StaticSlidingWindowLayer):
    """A static cache layer with a sliding window, filled from the right.

    Its buffer holds as many columns as the window has positions, filler included. Each step moves
    them to the left by one, as in an unpruned layer whose window is full.

    Args:
        held: The columns that are held.
        keys: [B, Hkv, n_held, d] K of them.
        values: [B, Hkv, n_held, d] V of them.
        window: Number of positions.
    """

    is_croppable = False

    def __init__(self, held: Held, keys: Tensor, values: Tensor, window: int) -> None:
        super().__init__(max_cache_len=window, sliding_window=window)
        # A column is a position or filler for one, so no position in sight is cut off.
        self._held: Held | None = held.filling(window)
        self.lazy_initialization(keys, values)
        n = min(window, held.n_held)
        self.keys[:, :, window - n :] = keys[:, :, held.n_held - n :]
        self.values[:, :, window - n :] = values[:, :, held.n_held - n :]
        self.cumulative_length_int = held.n_seen

    def held(self, n_seen: int) -> Held | None:
        """The columns of the buffer; None after `reset`."""
        return self._held

    def upcoming(self) -> Held | None:
        """The columns of the buffer in the next step; None after `reset`."""
        return None if self._held is None else self._held.extended(1).filling(self.max_cache_len)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """K and V with the new column on the right, [B, Hkv, window, d] each."""
        if self._held is None:
            return super().update(key_states, value_states, *args, **kwargs)
        self._held = self.upcoming()
        self.cumulative_length_int += 1
        for buffer, new in ((self.keys, key_states), (self.values, value_states)):
            buffer.copy_(torch.cat([buffer[:, :, 1:], new], dim=2))  # keeps the buffer's address
        return self.keys, self.values

    def reset(self) -> None:
        """Forgets everything; the layer is then as an unpruned one before its first prefill."""
        self._held = None
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the batch rows ``beam_idx``."""
        super().reorder_cache(beam_idx)
        if self._held is not None:
            self._held = self._held.selected(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Raises UsageError: tokens that came into the window moved others out of it."""
        raise UsageError(
            "A static cache with a sliding window cannot forget tokens of a pruned prompt; use a "
            "DynamicCache."
        )


PRUNED_STATIC = PrunedStaticKV, PrunedStaticSlidingKV
STATIC = frozenset({StaticLayer, StaticSlidingWindowLayer, *PRUNED_STATIC})
"""Kinds of cache layers with buffers of fixed sizes that a plan can run with."""


def upcoming(layer: Any) -> Held | None:
    """What a static layer that lost tokens shows a decode step; None if no tokens left it."""
    return layer.upcoming() if isinstance(layer, PRUNED_STATIC) else None


class DynamicCopy:
    """A dynamic copy of a static cache, for one pass of the decoder.

    Args:
        cache: The static cache.
        length: Number of new tokens.

    Raises:
        UsageError: The cache has no room for the new tokens.
    """

    def __init__(self, cache: Cache, length: int) -> None:
        self._static = cache
        n_seen = int(cache.get_seq_length())
        self._n_seen = n_seen + length
        room = [layer.get_mask_sizes(1)[0] for layer in cache.layers if _is_whole(layer)]
        if room and min(room) < self._n_seen:
            raise UsageError(
                f"The static cache must have room for all tokens; it has {min(room)} places, and "
                f"there are {self._n_seen} tokens. Make it with a larger max_cache_len."
            )
        self.cache = Cache(layers=[_dynamic(layer, n_seen) for layer in cache.layers])

    def arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the decoder with the copy in place of the cache.

        A mask that was made for the static cache has a column for each place of its buffers.
        """
        return {
            name: self.cache if value is self._static else self._mask(name, value)
            for name, value in arguments.items()
        }

    def written_back(self, output: Any) -> Any:
        """The decoder's output with the static cache, into which the copy was written."""
        layers = self._static.layers
        for at, layer in enumerate(self.cache.layers):
            layers[at] = _written(layer, layers[at])
        if isinstance(output, tuple):
            return tuple(self._static if part is self.cache else part for part in output)
        if getattr(output, compat.CACHE_NAME, None) is self.cache:
            setattr(output, compat.CACHE_NAME, self._static)
        return output

    def _mask(self, name: str, mask: Any) -> Any:
        if name != "attention_mask":
            return mask
        if isinstance(mask, Mapping):
            return {kind: self._mask(name, one) for kind, one in mask.items()}
        if isinstance(mask, Tensor) and mask.ndim == 4:
            return mask[..., : self._n_seen]
        return mask


def _is_whole(layer: Any) -> bool:
    """Whether a layer has a place for every position."""
    return isinstance(layer, StaticLayer) and not isinstance(layer, StaticSlidingWindowLayer)


def _dynamic(layer: Any, n_seen: int) -> Any:
    """A dynamic layer that holds what a static one does after so many positions."""
    if not isinstance(layer, StaticLayer):
        return layer
    made: DynamicLayer = DynamicLayer()
    if layer.is_sliding:
        made = DynamicSlidingWindowLayer(sliding_window=layer.max_cache_len)
        made.cumulative_length = n_seen
    if not n_seen:
        return made
    held = layer.held(n_seen) if isinstance(layer, PRUNED_STATIC) else None
    start, end = 0, n_seen if held is None else held.n_held
    if layer.is_sliding and held is None:
        # A dynamic layer does not keep the oldest position, which the next query cannot see.
        end = min(n_seen, layer.max_cache_len)
        start = max(end + 1 - layer.max_cache_len, 0)
    made.keys, made.values = layer.keys[:, :, start:end], layer.values[:, :, start:end]
    made.dtype, made.device, made.is_initialized = made.keys.dtype, made.keys.device, True
    return made if held is None else pruned(made, held)


def _written(layer: Any, static: Any) -> Any:
    """The static layer with what the dynamic one holds, or a pruned one in its place."""
    if not isinstance(static, StaticLayer) or not layer.is_initialized:
        return static
    size = static.get_mask_sizes(1)[0]
    if isinstance(layer, PrunedKV):
        kind = PrunedStaticSlidingKV if static.is_sliding else PrunedStaticKV
        return kind(layer.held, layer.keys, layer.values, size)
    static.reset()
    if static.is_sliding and layer.get_seq_length() >= size:
        # The oldest position of the window moves out before the next query looks.
        if not static.is_initialized:
            static.lazy_initialization(layer.keys, layer.values)
        static.keys[:, :, 1:], static.values[:, :, 1:] = layer.keys, layer.values
        static.cumulative_length_int = layer.get_seq_length()
        return static
    static.update(layer.keys, layer.values)
    return static
