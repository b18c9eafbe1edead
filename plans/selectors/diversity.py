"""diversity: keep tokens that differ from one another; ignores the question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors._greedy import farthest_first, max_sum
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    counts_of,
    order_mask,
    pair_flops,
    parameter,
    within,
)

_PIVOTS = ("farthest", "centre", "norm", "first")


def _is_pivot(value: Any) -> bool:
    return value in _PIVOTS if isinstance(value, str) else type(value) is int and value >= 0


@dataclass(frozen=True)
class Diversity(Selector):
    """Picks tokens one by one, each as far as possible from those picked before it.

    With the cosine distance d(i, j) = 1 - cos(i, j) and the set S of tokens picked so far, the
    next pick is argmax over i of min over j in S of d(i, j) (``max_min``), or argmax over i of the
    sum over j in S of d(i, j) (``max_sum``).

    Needs:   only the hidden states
    Cost:    O(B N^2 D) for all pairs, one matrix product, then a loop of K steps of O(B N)
    Source:  max_min: Alvar et al. 2025, arXiv 2503.02175 (DivPrune), with picked tokens masked;
             also BTP's mmdp, Li et al. 2025, arXiv 2505.22038. max_sum: ToDRE, arXiv 2505.18757
             v2, stage 1. Its pivot is the token with the highest [CLS] attention, which is not
             available in a decoder; the paper finds that the farthest token and a random token
             are each 0.2 points worse.
    """

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rule": ("max_min", "max_sum")}

    rule: str = choice("max_min", "max_sum")
    """The next pick is the token with the largest distance to the nearest picked token
    (``max_min``), or with the largest sum of distances to all picked tokens (``max_sum``)."""
    pivot: str | int = parameter(
        "farthest",
        f"be one of {', '.join(_PIVOTS)} or an original index",
        _is_pivot,
        {"anyOf": [{"enum": list(_PIVOTS)}, {"type": "integer", "minimum": 0}]},
    )
    """First pick of ``max_sum``: the token with the lowest (``farthest``) or highest (``centre``)
    cosine to the mean of all tokens, or with the largest norm (``norm``), the first token
    (``first``), or the token nearest to an original index (a number)."""

    def flops(self, work: Work) -> float:
        """FLOPs of the distances between all pairs of tokens."""
        return pair_flops(work.n_tokens, work)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, counts = tokens.valid, counts_of(tokens, n_keep)
        n_keep, most = within(n_keep, valid), max(counts.n_keep, default=0)
        if not any(counts.n_tokens):
            return torch.zeros_like(valid)
        distances = Distances(tokens.hidden, valid, counts.places(valid))
        if self.rule == "max_min":
            order = max_min(distances, valid, n_keep, most=most)
        else:
            first = first_token(tokens, self.pivot, distances, counts)
            order = max_sum(distances, first, valid, n_keep, most)
        return order_mask(order, valid.shape[-1])


def max_min(
    distances: Distances,
    candidates: Tensor,
    n_picks: Tensor,
    seeds: Tensor | None = None,
    most: int | None = None,
) -> Tensor:
    """[B, K] picks in order: each is the candidate farthest from its nearest chosen token.

    Args:
        distances: Distances between the tokens of each row.
        candidates: [B, N] bool, tokens that may be picked; seeds are never picked.
        n_picks: [B] int64, number of new picks.
        seeds: [B, N] bool, tokens that were chosen before. A row without seeds starts with the
            candidate farthest from its nearest neighbour.
        most: At least the largest number of picks of a row; None if it must be read.
    """
    if not candidates.numel():
        return n_picks.new_empty(len(n_picks), 0)
    seeds = torch.zeros_like(candidates) if seeds is None else seeds
    candidates = candidates & ~seeds
    seeded = seeds.any(-1, keepdim=True)
    # Step 1: the first pick is argmax_i min_j d(i, j). With seeds, j runs over the seeds, which is
    # the rule of all later picks; without seeds, j runs over all other candidates, as in DivPrune.
    first = distances.nearest(torch.where(seeded, seeds, candidates))
    # Step 2: greedy picks from there. Without seeds no token has been chosen yet, so that the
    # distance to the nearest chosen token starts at infinity.
    nearest = first.masked_fill(~seeded, math.inf)
    return farthest_first(distances, first, nearest, candidates, n_picks, most)


def first_token(
    tokens: Tokens, pivot: str | int, distances: Distances, counts: Counts | None = None
) -> Tensor:
    """[B] index of the token that ``Diversity.pivot`` names; ties go to the lowest index."""
    valid = tokens.valid
    if isinstance(pivot, int):
        score = -(tokens.index - pivot).abs().double()
    elif pivot == "first":
        score = -tokens.index.double()
    elif pivot == "norm":
        score = _lengths(tokens, counts or counts_of(tokens, tokens.n_original))
    else:
        # With unit directions u_j, the sum over j of d(i, j) is N (1 - u_i . mean(u)). It falls as
        # the cosine to the mean direction rises, so that it gives the reverse ranking.
        score = distances.total() * (-1 if pivot == "centre" else 1)
    return score.masked_fill(~valid, -math.inf).argmax(-1)


def _lengths(tokens: Tokens, counts: Counts) -> Tensor:
    result = torch.zeros_like(tokens.valid, dtype=torch.float64)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    for b, at in enumerate(counts.places(tokens.valid)):
        states = tokens.hidden[b].detach()[at].to(wide)
        result[b, at] = torch.linalg.vector_norm(states, dim=-1).double()
    return result.nan_to_num_(nan=-math.inf)
