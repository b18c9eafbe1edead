"""KV-cache layers that know logical positions: they report tokens SEEN and hold tokens KEPT.

The model sizes its masks, positions and second turns from the lengths a cache layer reports. A
pruned layer therefore answers with the logical length, while its K and V are physically shorter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from tpcal.plans.errors import UsageError


class Held:
    """Which logical positions a cache layer holds; immutable, shared by the layers of a stage.

    The columns are ``index`` followed by ``n_tail`` consecutive positions ending at ``n_seen``:
    text that was appended later costs no tensor work until a mask asks for it.

    Args:
        index: [B, K] int64 logical positions, ascending; any seen position on filler.
        valid: [B, K] False on filler, which stands on the left; None where there is none.
        n_seen: Logical length: tokens the layer has seen.
        n_tail: Consecutive positions after ``index``.
    """

    def __init__(self, index: Tensor, valid: Tensor | None, n_seen: int, n_tail: int) -> None:
        self.index = index
        self.valid = valid
        self.n_seen = n_seen
        self.n_tail = n_tail
        self._memo: dict[Any, tuple[Any, Any]] = {}

    @classmethod
    def recent(cls, n_rows: int, n_seen: int, n_held: int, device: torch.device) -> Held:
        """The last ``n_held`` of the first ``n_seen`` positions: what an unpruned layer holds."""
        empty = torch.empty(n_rows, 0, dtype=torch.int64, device=device)
        return cls(empty, None, n_seen, n_held)

    @property
    def n_held(self) -> int:
        """Columns of K and V, filler included."""
        return self.index.shape[1] + self.n_tail

    def positions(self) -> Tensor:
        """[B, n_held] int64 logical positions."""
        if "positions" not in self._memo:
            first = self.n_seen - self.n_tail
            tail = torch.arange(first, self.n_seen, device=self.index.device)
            tail = tail.expand(self.index.shape[0], -1)
            self._memo["positions"] = None, torch.cat([self.index, tail], dim=1)
        return self._memo["positions"][1]

    def mask(self) -> Tensor | None:
        """[B, n_held] bool, False on filler; None where there is none."""
        if self.valid is None:
            return None
        if "mask" not in self._memo:
            tail = self.valid.new_ones(self.valid.shape[0], self.n_tail)
            self._memo["mask"] = None, torch.cat([self.valid, tail], dim=1)
        return self._memo["mask"][1]

    def extended(self, n_new: int) -> Held:
        """After ``n_new`` more positions were seen and all of them kept."""
        if ("extended", n_new) not in self._memo:
            after = Held(self.index, self.valid, self.n_seen + n_new, self.n_tail + n_new)
            self._memo["extended", n_new] = None, after
        return self._memo["extended", n_new][1]

    def joined(self, columns: Tensor, valid: Tensor | None, n_new: int) -> Held:
        """After ``n_new`` more positions were seen and ``columns`` of them kept.

        Args:
            columns: [B, m] int64 places within the new positions, ascending.
            valid: [B, m] False on filler; None where there is none.
            n_new: Positions seen.
        """
        key = "joined", id(columns)
        if key not in self._memo:
            index = torch.cat([self.positions(), columns + self.n_seen], dim=1)
            after = Held(index, _cat_masks(self, columns, valid), self.n_seen + n_new, 0)
            self._memo[key] = columns, after
        return self._memo[key][1]

    def within(self, window: int) -> Held:
        """Without leading columns that no later query sees through a window of so many positions.

        A later query sees the last ``window - 1`` positions and itself. Columns stay as long as
        one row needs them, and as long as finding out would cost a transfer from the device: masks
        hide what is out of sight.
        """
        n_recent = window - 1
        if self.n_tail >= n_recent:
            return Held(self.index[:, :0], None, self.n_seen, n_recent)
        if self.n_tail or not self.index.shape[1]:
            return self
        if ("within", window) not in self._memo:
            sees = self.index >= self.n_seen - n_recent
            if self.valid is not None:
                sees &= self.valid
            n_gone = int((~sees).long().cumprod(dim=1).sum(dim=1).min())
            valid = None if self.valid is None else self.valid[:, n_gone:]
            rest = Held(self.index[:, n_gone:], valid, self.n_seen, 0)
            self._memo["within", window] = None, rest
        return self._memo["within", window][1]

    def selected(self, rows: Tensor) -> Held:
        """With the batch rows ``rows`` [B'] int64, in that order."""
        key = "selected", id(rows)
        if key not in self._memo:
            at = rows.to(self.index.device)
            valid = None if self.valid is None else self.valid[at]
            self._memo[key] = rows, Held(self.index[at], valid, self.n_seen, self.n_tail)
        return self._memo[key][1]

    def cropped(self, n_gone: int) -> tuple[Held, Tensor | None]:
        """Without the last ``n_gone`` logical positions.

        Returns:
            The rest, and [B, K'] int64 columns to gather from K and V; None where the last
            ``n_gone`` columns simply go.
        """
        n_seen = self.n_seen - n_gone
        if n_gone <= self.n_tail:
            return Held(self.index, self.valid, n_seen, self.n_tail - n_gone), None
        stays = self.positions() < n_seen
        mask = self.mask()
        if mask is not None:
            stays &= mask
        n_row = stays.sum(dim=1)
        n_held = int(n_row.max())
        columns = right_aligned(stays, n_held)
        valid = None if bool((n_row == n_held).all()) else stays.gather(1, columns)
        index = self.positions().gather(1, columns).clamp(max=max(n_seen - 1, 0))
        return Held(index, valid, n_seen, 0), columns


class PrunedKV(DynamicLayer):
    """A dynamic cache layer that holds only the tokens that reached its decoder layer.

    ``incoming`` is set by the executor before a decoder layer runs; without it the new tokens are
    taken as they come, so a conversation goes on after the executor was removed (unpadded prompts
    only).
    """

    held: Held
    keys: Tensor
    values: Tensor
    incoming: Held | None = None

    @torch.compiler.disable  # compiled, it would be made anew for every step and layer
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """K and V with the new columns appended."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        states = (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )
        held, self.incoming = self.incoming, None
        if held is None or held.n_held != states[0].shape[-2]:  # left by a pass that failed
            held = self.held.extended(key_states.shape[-2])
        self._hold(held, *states)
        return states

    def get_seq_length(self) -> int:
        """Tokens seen, not tokens held."""
        return self.held.n_seen

    def reset(self) -> None:
        """Forgets everything, as before the first prefill."""
        super().reset()
        self.held = Held.recent(0, 0, 0, self.held.index.device)
        self.incoming = None

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` logical tokens, kept or not."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove must be at most 0; got {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        held, columns = self.held.cropped(min(-tokens_to_remove, self.held.n_seen))
        if columns is None:
            n = held.n_held
            self._hold(held, self.keys[..., :n, :], self.values[..., :n, :])
            return
        at = columns[:, None, :, None]
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

    def _hold(self, held: Held, keys: Tensor, values: Tensor) -> None:
        self.held, self.keys, self.values = held, keys, values


class PrunedSlidingKV(PrunedKV, DynamicSlidingWindowLayer):
    """The same for a layer that looks back through a window of logical positions."""

    def get_max_length(self) -> int:
        """The window."""
        return self.sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and first position of the keys the model makes its mask for."""
        return DynamicSlidingWindowLayer.get_mask_sizes(self, query_length)

    def reset(self) -> None:
        """Forgets everything, as before the first prefill."""
        super().reset()
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last ``-tokens_to_remove`` logical tokens, and what left the window.

        Raises:
            RuntimeError: Tokens that would come back into the window are gone already, because
                ``activate_past_recording`` was not called.
        """
        if tokens_to_remove and not self.record_past and self.held.n_seen >= self.sliding_window:
            raise RuntimeError(
                "A full sliding window can be cropped only after activate_past_recording()."
            )
        super().crop(tokens_to_remove)
        if self.is_initialized:
            self._narrow()

    def _hold(self, held: Held, keys: Tensor, values: Tensor) -> None:
        super()._hold(held, keys, values)
        self.cumulative_length = held.n_seen
        if not self.record_past:
            self._narrow()

    def _narrow(self) -> None:
        held = self.held.within(self.sliding_window)
        n = held.n_held
        if n < self.held.n_held:
            start = self.held.n_held - n
            keys, values = self.keys[..., start:, :], self.values[..., start:, :]
            if start > 1 or not held.n_tail:  # a view would keep the prompt's states in memory
                keys, values = keys.clone(), values.clone()
            self.held, self.keys, self.values = held, keys, values


_PRUNED: dict[type, type[PrunedKV]] = {
    DynamicLayer: PrunedKV,
    DynamicSlidingWindowLayer: PrunedSlidingKV,
}
_KNOWN = {*_PRUNED, *_PRUNED.values(), DummyLayer}


def pruned(layer: DynamicLayer, held: Held) -> PrunedKV:
    """A layer with the same K and V as ``layer``, which holds ``held``."""
    made = _PRUNED[type(layer)].__new__(_PRUNED[type(layer)])
    made.__dict__.update(layer.__dict__)
    made.held = held
    return made


def n_physical(layer: Any) -> int:
    """Columns of K and V that a cache layer holds."""
    keys = getattr(layer, "keys", None)
    return 0 if keys is None or keys.ndim < 4 else keys.shape[-2]


def cache_layer(cache: Cache | None, layer: int) -> DynamicLayer | None:
    """The cache layer of decoder layer ``layer``, made where the cache makes its layers lazily."""
    if cache is None:
        return None
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= layer:
            cache.layers.append(cache.layer_class_to_replicate())
    return cache.layers[layer]


def check_cache(cache: Cache | None) -> None:
    """Nothing, where a plan can run with this cache.

    Raises:
        UsageError: A kind of cache whose K and V cannot have another length in every layer.
    """
    if cache is None:
        return
    made = cache.layer_class_to_replicate
    kinds = {type(layer) for layer in cache.layers} | ({made} if made is not None else set())
    unknown = sorted(kind.__name__ for kind in kinds if kind not in _KNOWN)
    if unknown or getattr(cache, "offloading", False):
        got = ", ".join(unknown) or "an offloaded cache"
        raise UsageError(
            f"The KV cache must be a DynamicCache to run a plan; got {got}. Leave out "
            "cache_implementation, pass past_key_values=DynamicCache(), or use use_cache=False."
        )


def needs_mask(cache: Cache | None) -> bool:
    """Whether one more token needs a mask: rows with filler, or a window among pruned layers."""
    layers = () if cache is None else cache.layers
    return any(
        isinstance(layer, PrunedKV)
        and (type(layer) is not PrunedKV or layer.held.valid is not None)
        for layer in layers
    )


def kv_bytes(cache: Cache) -> list[int]:
    """[L] bytes of K and V that each layer holds for all rows, filler of ragged rows included."""
    return [
        0 if layer.keys is None else layer.keys.nbytes + layer.values.nbytes
        for layer in cache.layers
    ]


def right_aligned(stays: Tensor, n_columns: int) -> Tensor:
    """[B, n_columns] places where ``stays`` [B, N] is True, ascending, filler on the left."""
    order = stays.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, order.shape[1] - n_columns :]


def _cat_masks(held: Held, columns: Tensor, valid: Tensor | None) -> Tensor | None:
    before = held.mask()
    if before is None and valid is None:
        return None
    if before is None:
        before = torch.ones(columns.shape[0], held.n_held, dtype=torch.bool, device=columns.device)
    if valid is None:
        valid = torch.ones_like(columns, dtype=torch.bool)
    return torch.cat([before, valid], dim=1)
