"""Merges the tokens that leave at a cut into the kept tokens that are most alike.

A kept token then stands for several tokens, whose number is its *size*. Its state becomes their
mean, weighted by their sizes. With proportional attention, all later layers count it as often:

    softmax_j(q k_j / sqrt(d) + log size_j)

This is what attention gives if all tokens that a kept one stands for had its key and its value.

Source:
    Bolya et al. 2023, Token Merging (arXiv 2210.09461), section 3. There a bipartite matching
    chooses who is merged; here a plan's selector chooses who stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import directions, distances
from tpcal.plans.selectors._merging import mean_states
from tpcal.plans.selectors.base import Tokens, Work, n_kept

_STEPS = 2.0**18
"""Distances are multiples of 1 / _STEPS or finer."""


def merged(tokens: Tokens, stays: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The states and sizes of the kept tokens after the others were merged into them.

    A row does not depend on the other rows of the batch. Ties go to the lowest index.

    Args:
        tokens: The tokens at a cut.
        stays: [B, N] bool, those that stay.
        sizes: [B, N] number of original tokens that each token stands for.

    Returns:
        [B, N, D] states and [B, N] sizes; other values than those of kept tokens mean nothing.
    """
    most = n_kept(tokens, stays)
    if not most:
        return tokens.hidden, sizes
    into = _most_alike(tokens, stays)
    states = mean_states(tokens.hidden, into, most, sizes)
    gone = into < 0
    total = torch.zeros_like(sizes)
    total.scatter_add_(1, into.clamp(min=0), sizes.masked_fill(gone, 0))
    return states, total


def flops(work: Work) -> float:
    """FLOPs of comparing the tokens that leave with those that stay: 2 (N - K) K D."""
    return 2.0 * (work.n_tokens - work.n_keep) * work.n_keep * work.hidden


def _most_alike(tokens: Tokens, stays: Tensor) -> Tensor:
    """[B, N] int64 index of the kept token that each token is merged into; -1 on filler."""
    place = torch.arange(stays.shape[1], device=stays.device)
    into = torch.where(stays, place, -1)
    counts = tokens.counts
    if counts is None:
        pairs = [(int(n), int(k)) for n, k in zip(tokens.valid.sum(1), stays.sum(1), strict=True)]
    else:
        pairs = list(zip(counts.n_tokens, counts.n_keep, strict=True))
    # Kept tokens first, each group in order of index; filler stands behind all of them.
    order = (2 * stays.to(torch.uint8) + tokens.valid).argsort(dim=1, descending=True, stable=True)
    for row, (n, k) in enumerate(pairs):
        if 0 < k < n:
            kept, rest = order[row, :k], order[row, k:n]
            states = tokens.hidden[row].detach()
            apart = distances(directions(states[rest]), directions(states[kept]))  # [n - k, k]
            # Equal distances are told apart by the order of the kept tokens, on every device.
            ranked = (apart.double() * _STEPS).round().long() * k + place[:k]
            into[row, rest] = kept[ranked.min(dim=1).values % k]
    return into
