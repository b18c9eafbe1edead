"""Means of the states of merged tokens, for selectors that merge pruned tokens into kept ones."""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP = 512  # columns of the hidden size that are converted to full precision at a time


def mean_states(
    states: Tensor, into: Tensor, most: int | None = None, sizes: Tensor | None = None
) -> Tensor:
    """[B, N, D] states in which each kept token is the mean of the tokens merged into it.

    A kept token that no other token is merged into is unchanged. Sums are float32 (float64 for
    float64) in ascending order of index, so that results do not depend on other rows and are
    reproducible bit by bit.

    Args:
        states: [B, N, D].
        into: [B, N] int64 index of the token that each token is merged into: its own index if it
            is kept, -1 if it is dropped without merging.
        most: At least the largest number of tokens that a row keeps; None if it must be read.
        sizes: [B, N] weight of each token in the mean; None: all have the same.
    """
    # Step 1: give every kept token a slot of its own, by ascending index, and every other token
    # the slot of the token it is merged into. The last slot of a row collects dropped tokens.
    n_tokens, width = into.shape[1], states.shape[2]
    place = torch.arange(n_tokens, device=into.device)
    stays = into == place
    if most is None:
        most = int(stays.sum(-1).max()) if stays.numel() else 0
    n_slots = most + 1
    slot = torch.where(stays, stays.cumsum(-1) - 1, 0).gather(-1, into.clamp(min=0))
    slot = slot.masked_fill(into < 0, n_slots - 1)
    slot = (slot + n_slots * torch.arange(len(into), device=into.device)[:, None]).flatten()
    # Step 2: sort the tokens of the batch by slot. The sort is stable, so that the tokens of a
    # slot are contiguous and in order of index, and mean = (sum of the segment) / (its length).
    # A strip of columns at a time bounds the memory for full precision.
    count = slot.new_zeros(len(into) * n_slots).scatter_add_(0, slot, torch.ones_like(slot))
    order, wide = slot.argsort(stable=True), torch.promote_types(states.dtype, torch.float32)
    weight, divisor = None, count[:, None]
    if sizes is not None:
        weight = sizes.flatten().index_select(0, order)[:, None].to(wide)
        divisor = torch.segment_reduce(weight, "sum", lengths=count, axis=0, unsafe=True)
    means = []
    for part in states.flatten(0, 1).split(_STRIP, dim=1):
        part = part.index_select(0, order).to(wide)
        part = part if weight is None else part * weight
        total = torch.segment_reduce(part, "sum", lengths=count, axis=0, unsafe=True)
        means.append((total / divisor).to(states.dtype))
    mean = torch.cat(means, dim=1).view(len(into), n_slots, width)[:, :-1]
    # Step 3: write the means back to the kept tokens' indices, `held`. Slots of one token keep
    # its state bit by bit, and rows with fewer slots than others write their own states back.
    held = (~stays).to(torch.uint8).argsort(dim=-1, stable=True)[:, : n_slots - 1]
    several = count.view(len(into), n_slots)[:, :-1, None] > 1
    kept = torch.where(several & stays.gather(-1, held)[..., None], mean, take(states, held))
    return states.scatter(1, held[..., None].expand(-1, -1, width), kept)


def take(states: Tensor, place: Tensor) -> Tensor:
    """[B, K, D] states at the indices ``place`` [B, K] of ``states`` [B, N, D]."""
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[-1]))
