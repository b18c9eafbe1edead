"""KV-cache layers that report the tokens seen and hold the tokens kept.

The model sizes its masks, positions and second turns by the lengths that a cache layer reports. A
pruned layer therefore answers with the number of tokens seen, while its K and V are shorter.

A worked example: a model of four layers, a prompt of six tokens (``t`` text, ``v`` visual), and a
cut before layer 2 that drops the visual tokens at positions 2 and 4.

    position            0  1  2  3  4  5
    token               t  v  v  v  v  t

    after the prefill   K and V hold the positions   columns   get_seq_length()
    layers 0 and 1      0  1  2  3  4  5             6         6
    layers 2 and 3      0  1     3     5             4         6

Every layer reports the length 6, so the model gives the next token position 6 and the rotary
angles of position 6. Keys hold the rotation of their own positions, so the distances
between tokens are those of the unpruned prompt; no position is counted anew.

    after one token     K and V hold the positions   columns   get_seq_length()
    layers 0 and 1      0  1  2  3  4  5  6          7         7
    layers 2 and 3      0  1     3     5  6          5         7

A mask that the model makes for that token has 7 columns, one per position. Layers 2 and 3 get its
columns 0, 1, 3, 5 and 6. `crop(-3)` then forgets the last three positions, 4, 5 and 6, of which
layers 2 and 3 hold only 5 and 6: they keep 0, 1 and 3, and every layer reports 4.

In a batch, a second row may keep 2 as well, so it holds five columns where the first row holds
four. The first row then carries one column of filler on the left, which every mask hides:

    row 0               -  0  1  3  5
    row 1               0  1  2  3  5
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tpcal.plans.errors import UsageError
from tpcal.plans.executor import compat
from tpcal.plans.executor.kv_columns import Held


class PrunedKV(DynamicLayer):
    """A dynamic cache layer that holds only the tokens that reached its decoder layer.

    The executor sets ``incoming`` before a decoder layer runs. Without it, all new tokens are
    kept, so a conversation of unpadded prompts goes on after the plan was removed.
    """

    held: Held
    keys: Tensor
    values: Tensor
    incoming: Held | None = None

    @torch.compiler.disable  # compiled, it would be compiled again for every step and layer
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """K and V with the new columns appended, [B, Hkv, n_held, d] each."""
        states = self._appended(key_states, value_states)
        # `incoming` is what the executor expects after this call. A pass that failed before it
        # reached this layer may have left one; its number of columns shows that it is not meant.
        held, self.incoming = self.incoming, None
        if held is None or held.n_held != states[0].shape[-2]:
            held = self.held.extended(key_states.shape[-2])
        self._hold(held, *states)
        return states

    def get_seq_length(self) -> int:
        """Number of tokens seen, not of tokens held."""
        return self.held.n_seen

    def reset(self) -> None:
        """Forgets everything, as before the first prefill."""
        # Before 5.20, transformers keeps the columns and fills them with zeros.
        self.keys = self.values = None  # type: ignore[assignment]
        self.is_initialized = False
        super().reset()
        self.held = Held.recent(0, 0, 0, self.held.index.device)
        self.incoming = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` positions, kept or not.

        Args:
            tokens_to_remove: At most 0, as transformers passes it.

        Raises:
            ValueError: ``tokens_to_remove`` is positive.
        """
        tokens_to_remove = compat.tokens_to_remove(tokens_to_remove, self.get_seq_length())
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be at most 0; got {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        held, columns = self.held.cropped(min(-tokens_to_remove, self.held.n_seen))
        if columns is None:
            n = held.n_held
            self._hold(held, self.keys[..., :n, :], self.values[..., :n, :])
            return
        at = columns[:, None, :, None].to(self.keys.device)  # [B, 1, K', 1]; it may be offloaded
        keys = torch.take_along_dim(self.keys, at, dim=2)
        self._hold(held, keys, torch.take_along_dim(self.values, at, dim=2))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the batch rows ``beam_idx``."""
        super().reorder_cache(beam_idx)
        self.held = self.held.selected(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every batch row."""
        super().batch_repeat_interleave(repeats)
        rows = torch.arange(self.held.index.shape[0], device=self.held.index.device)
        self.held = self.held.selected(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Takes the batch rows ``indices``."""
        super().batch_select_indices(indices)
        self.held = self.held.selected(indices)

    def _appended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )

    def _hold(self, held: Held, keys: Tensor, values: Tensor) -> None:
        self.held, self.keys, self.values = held, keys, values


class PrunedSlidingKV(PrunedKV, DynamicSlidingWindowLayer):
    """A pruned layer with a sliding window of positions."""

    def get_max_length(self) -> int:
        """Number of positions in the window."""
        return self.sliding_window

    get_max_cache_shape = get_max_length  # its name before 5.13

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and first position of the keys that the model makes its mask for."""
        # The model masks the window by positions, as in an unpruned layer. `gather.layer_mask`
        # then picks the columns that are held.
        return DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)

    def reset(self) -> None:
        """Forgets everything, as before the first prefill."""
        super().reset()
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` positions, and what left the window.

        Args:
            tokens_to_remove: At most 0, as transformers passes it.

        Raises:
            RuntimeError: The window is full and ``activate_past_recording`` was not called, so
                tokens that would come back into the window are gone already.
        """
        tokens_to_remove = compat.tokens_to_remove(tokens_to_remove, self.held.n_seen)
        full = self.held.n_seen >= self.sliding_window
        if tokens_to_remove and full and not compat.records_past(self):
            raise RuntimeError(
                "A full sliding window can be cropped only after activate_past_recording()."
            )
        super().crop(tokens_to_remove)
        if self.is_initialized:
            self._narrow()

    def _hold(self, held: Held, keys: Tensor, values: Tensor) -> None:
        super()._hold(held, keys, values)
        self.cumulative_length = held.n_seen
        if not compat.records_past(self):
            self._narrow()

    def _narrow(self) -> None:
        # Columns leave on the left, where the oldest positions stand.
        held = self.held.within(self.sliding_window)
        n = held.n_held
        if n < self.held.n_held:
            start = self.held.n_held - n
            keys, values = self.keys[..., start:, :], self.values[..., start:, :]
            if start > 1 or not held.n_tail:  # a view would keep the prompt's states in memory
                keys, values = keys.clone(), values.clone()
            self.held, self.keys, self.values = held, keys, values


class PrunedQuantizedKV(PrunedKV):
    """A pruned layer whose K and V are quantized as in the layer that it replaces.

    Subclasses, made by `pruned`, add the class of that layer.
    """

    is_croppable = False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises UsageError: what was quantized cannot be cut."""
        raise UsageError("A quantized KV cache cannot be cropped; use a DynamicCache.")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Raises UsageError: what was quantized cannot be repeated."""
        raise UsageError("Rows of a quantized KV cache cannot be repeated; use a DynamicCache.")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Raises UsageError: what was quantized cannot be selected."""
        raise UsageError("Rows of a quantized KV cache cannot be selected; use a DynamicCache.")

    def _appended(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        return super(PrunedKV, self).update(key_states, value_states)

    def _hold(self, held: Held, keys: Tensor, values: Tensor) -> None:
        self.held = held  # the layer itself has stored K and V


_PRUNED: dict[type, type[PrunedKV]] = {
    DynamicLayer: PrunedKV,
    DynamicSlidingWindowLayer: PrunedSlidingKV,
}
PRUNED = frozenset(_PRUNED.values())


def is_quantized(kind: type) -> bool:
    """Whether layers of a class hold quantized K and V."""
    return issubclass(kind, compat.QUANTIZED)


def pruned(layer: DynamicLayer, held: Held) -> PrunedKV:
    """A pruned layer with the K and V of ``layer``, whose columns are ``held``."""
    # The class of an existing object cannot be exchanged here (their layouts differ), so a new
    # object takes over its state.
    kind = _pruned_class(layer.__class__)
    made = kind.__new__(kind)
    made.__dict__.update(layer.__dict__)
    made.held = held
    return made


@cache
def _pruned_class(kind: type) -> type[PrunedKV]:
    if is_quantized(kind):
        return type(f"Pruned{kind.__name__}", (PrunedQuantizedKV, kind), {})
    return _PRUNED[kind]


def n_physical(layer: Any) -> int:
    """Number of columns of K and V that a cache layer holds."""
    if is_quantized(type(layer)):
        return int(layer.cumulative_length)
    keys = getattr(layer, "keys", None)
    return 0 if keys is None or keys.ndim < 4 else keys.shape[-2]
