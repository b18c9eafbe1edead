"""Tokens that stay take in those that leave: means of states, for selectors that merge."""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP = 512  # of the hidden size, summed at a time in full precision


def mean_states(states: Tensor, into: Tensor) -> Tensor:
    """[B, N, D] mean of the tokens that go into each place; unchanged where none or one does.

    Sums are float32 (float64 stays float64), one after the other by rising index, so that neither
    company nor chance changes a bit.

    Args:
        states: [B, N, D].
        into: [B, N] int64 place of the token that takes this one in, its own where it stays; -1
            where it leaves without a trace.
    """
    n_tokens, width = into.shape[1], states.shape[2]
    place = torch.arange(n_tokens, device=into.device)
    stays = into == place
    n_slots = int(stays.sum(-1).max()) + 1 if stays.numel() else 1  # the last takes what leaves
    slot = torch.where(stays, stays.cumsum(-1) - 1, 0).gather(-1, into.clamp(min=0))
    slot = slot.masked_fill(into < 0, n_slots - 1)
    slot = (slot + n_slots * torch.arange(len(into), device=into.device)[:, None]).flatten()
    count = slot.new_zeros(len(into) * n_slots).scatter_add_(0, slot, torch.ones_like(slot))
    order, wide = slot.argsort(stable=True), torch.promote_types(states.dtype, torch.float32)
    means = []
    for part in states.flatten(0, 1).split(_STRIP, dim=1):
        part = part.index_select(0, order).to(wide)
        total = torch.segment_reduce(part, "sum", lengths=count, axis=0, unsafe=True)
        means.append((total / count[:, None]).to(states.dtype))
    mean = torch.cat(means, dim=1).view(len(into), n_slots, width)[:, :-1]
    held = (~stays).to(torch.uint8).argsort(dim=-1, stable=True)[:, : n_slots - 1]
    several = count.view(len(into), n_slots)[:, :-1, None] > 1
    kept = torch.where(several & stays.gather(-1, held)[..., None], mean, take(states, held))
    return states.scatter(1, held[..., None].expand(-1, -1, width), kept)


def take(states: Tensor, place: Tensor) -> Tensor:
    """[B, K, D] rows of [B, N, D] at the places [B, K]."""
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[-1]))
