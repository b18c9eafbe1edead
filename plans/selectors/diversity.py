"""diversity: keep tokens that differ from one another; ignores the question."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import Distances, real_places
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
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
        valid, n_keep = tokens.valid, within(n_keep, tokens.valid)
        if not valid.any():
            return torch.zeros_like(valid)
        distances = Distances(tokens.hidden, valid)
        if self.rule == "max_min":
            order = max_min(distances, valid, n_keep)
        else:
            first = first_token(tokens, self.pivot, distances)
            order = max_sum(distances, first, valid, n_keep)
        return order_mask(order, valid.shape[-1])


def max_min(
    distances: Distances, candidates: Tensor, n_picks: Tensor, seeds: Tensor | None = None
) -> Tensor:
    """[B, K] picks in order: each is the candidate farthest from its nearest chosen token.

    Args:
        distances: Distances between the tokens of each row.
        candidates: [B, N] bool, tokens that may be picked; seeds are never picked.
        n_picks: [B] int64, number of new picks.
        seeds: [B, N] bool, tokens that were chosen before. A row without seeds starts with the
            candidate farthest from its nearest neighbour.
    """
    seeds = torch.zeros_like(candidates) if seeds is None else seeds
    candidates = candidates & ~seeds
    seeded = seeds.any(-1, keepdim=True)
    if not candidates.any():
        return n_picks.new_empty(n_picks.shape[0], 0)
    # Step 1: the first pick is argmax_i min_j d(i, j). With seeds, j runs over the seeds, which is
    # the rule of all later picks; without seeds, j runs over all other candidates, as in DivPrune.
    first = distances.nearest(torch.where(seeded, seeds, candidates))
    # Step 2: greedy picks from there. Without seeds no token has been chosen yet, so that the
    # distance to the nearest chosen token starts at infinity.
    nearest = first.masked_fill(~seeded, math.inf)
    return farthest_first(distances.to, first, nearest, candidates, n_picks)


def max_sum(distances: Distances, pivot: Tensor, candidates: Tensor, n_picks: Tensor) -> Tensor:
    """[B, K] picks in order: the pivot, then each time the largest summed distance to the picks.

    Args:
        distances: Distances between the tokens of each row.
        pivot: [B] int64, first pick.
        candidates: [B, N] bool, tokens that may be picked.
        n_picks: [B] int64, number of picks, the pivot included.
    """
    n_picks, start = within(n_picks, candidates), row_starts(candidates)
    # far[i] = sum over picks j of d(i, j). Every pick adds one row of distances: O(N) a step
    # instead of O(N K). What is filler or picked already stays at -inf and is never the maximum.
    far = distances.to(pivot).masked_fill_(~candidates, -math.inf)
    picks = [pivot]
    for _ in range(1, _most(n_picks)):
        far.view(-1).index_fill_(0, picks[-1] + start, -math.inf)
        picks.append(far.argmax(-1))
        far += distances.to(picks[-1])
    return ordered(picks, n_picks)


def farthest_first(
    distance_to: Callable[[Tensor], Tensor],
    first: Tensor,
    nearest: Tensor,
    candidates: Tensor,
    n_picks: Tensor,
) -> Tensor:
    """[B, K] picks in order: each is the candidate whose nearest chosen token is farthest away.

    Entries are -1 after the last pick of a row. No token is picked twice, even if its distance to
    the chosen ones is 0. Ties go to the lowest index.

    Args:
        distance_to: Function from picks [B] to the distances [B, N] of every token to its row's
            pick.
        first: [B, N] scores of the first pick; the highest wins.
        nearest: [B, N] distance to the nearest token chosen before; inf if there is none.
        candidates: [B, N] bool, tokens that may be picked.
        n_picks: [B] int64, number of picks.
    """
    n_picks, start = within(n_picks, candidates), row_starts(candidates)
    score = first.masked_fill(~candidates, -math.inf)
    # nearest[i] = min over chosen j of d(i, j); -inf marks tokens that must not be picked, and a
    # minimum with any distance leaves it at -inf.
    nearest = nearest.masked_fill(~candidates, -math.inf)
    picks: list[Tensor] = []
    # Each step picks p = argmax_i nearest[i], then updates nearest[i] = min(nearest[i], d(i, p)):
    # O(N) a step, because the minimum over the earlier picks is already known.
    for _ in range(_most(n_picks)):
        picks.append(score.argmax(-1))
        torch.minimum(nearest, distance_to(picks[-1]), out=nearest)
        nearest.view(-1).index_fill_(0, picks[-1] + start, -math.inf)
        score = nearest
    return ordered(picks, n_picks)


def row_starts(mask: Tensor) -> Tensor:
    """[B] int64 place of each row's first entry in the flattened ``mask`` [B, N]."""
    return torch.arange(len(mask), device=mask.device) * mask.shape[-1]


def ordered(picks: list[Tensor], n_picks: Tensor) -> Tensor:
    """[B, K] picks, stacked from the picks [B] of each step; -1 after the last pick of a row."""
    if not picks:
        return n_picks.new_empty(len(n_picks), 0)
    turn = torch.arange(len(picks), device=n_picks.device)
    return torch.stack(picks, dim=-1).masked_fill(turn >= n_picks[:, None], -1)


def first_token(tokens: Tokens, pivot: str | int, distances: Distances) -> Tensor:
    """[B] index of the token that ``Diversity.pivot`` names; ties go to the lowest index."""
    valid = tokens.valid
    if isinstance(pivot, int):
        score = -(tokens.index - pivot).abs().double()
    elif pivot == "first":
        score = -tokens.index.double()
    elif pivot == "norm":
        score = _lengths(tokens)
    else:
        # With unit directions u_j, the sum over j of d(i, j) is N (1 - u_i . mean(u)). It falls as
        # the cosine to the mean direction rises, so that it gives the reverse ranking.
        score = distances.total() * (-1 if pivot == "centre" else 1)
    return score.masked_fill(~valid, -math.inf).argmax(-1)


def _lengths(tokens: Tokens) -> Tensor:
    result = torch.zeros_like(tokens.valid, dtype=torch.float64)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    for b, at in enumerate(real_places(tokens.valid)):
        states = tokens.hidden[b].detach()[at].to(wide)
        result[b, at] = torch.linalg.vector_norm(states, dim=-1).double()
    return result.nan_to_num_(nan=-math.inf)


def _most(n_picks: Tensor) -> int:
    return int(n_picks.max()) if len(n_picks) else 0
