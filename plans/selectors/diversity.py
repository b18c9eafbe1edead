"""diversity: keep tokens that differ from one another; never looks at the question."""

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
    """Picks one token after the other, each unlike those picked before, by cosine distance.

    Needs:   nothing but the hidden states
    Cost:    O(B N^2 D) for all pairs, one matrix product, then a loop of K steps of O(B N)
    Source:  max_min: Alvar et al. 2025, arXiv 2503.02175 (DivPrune), picked tokens masked; also
             BTP's mmdp, Li et al. 2025, arXiv 2505.22038. max_sum: ToDRE, arXiv 2505.18757 v2,
             stage 1; its pivot is the token of the highest [CLS] attention, which a decoder does
             not know: the paper finds the farthest token 0.2 points worse, a random one too.
    """

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rule": ("max_min", "max_sum")}

    rule: str = choice("max_min", "max_sum")
    """Next is the token farthest from its nearest picked one, or from all picked ones together."""
    pivot: str | int = parameter(
        "farthest",
        f"be one of {', '.join(_PIVOTS)} or an original index",
        _is_pivot,
        {"anyOf": [{"enum": list(_PIVOTS)}, {"type": "integer", "minimum": 0}]},
    )
    """First token of max_sum: by cosine to the mean of all tokens (``farthest``, ``centre``), the
    longest (``norm``), the first one alive, or the one alive nearest to an original index."""

    def flops(self, work: Work) -> float:
        """All pairs."""
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
    """[B, K] picks in order: the candidate farthest from its nearest chosen token.

    Args:
        distances: Of the row's tokens.
        candidates: [B, N] bool, what may be picked; seeds never are.
        n_picks: [B] int64, new picks.
        seeds: [B, N] bool, chosen before. A row without any starts with the candidate farthest
            from its nearest neighbour.
    """
    seeds = torch.zeros_like(candidates) if seeds is None else seeds
    candidates = candidates & ~seeds
    seeded = seeds.any(-1, keepdim=True)
    if not candidates.any():
        return n_picks.new_empty(n_picks.shape[0], 0)
    first = distances.nearest(torch.where(seeded, seeds, candidates))
    nearest = first.masked_fill(~seeded, math.inf)
    return farthest_first(distances.to, first, nearest, candidates, n_picks)


def max_sum(distances: Distances, pivot: Tensor, candidates: Tensor, n_picks: Tensor) -> Tensor:
    """[B, K] picks in order: the pivot, then always the largest summed distance to those picked.

    Args:
        distances: Of the row's tokens.
        pivot: [B] int64, first pick.
        candidates: [B, N] bool.
        n_picks: [B] int64, the pivot counted.
    """
    n_picks, start = within(n_picks, candidates), row_starts(candidates)
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
    """[B, K] picks in order: the candidate farthest from all chosen; -1 where a row has finished.

    No token is picked twice, however near another is. Ties go to the lowest index.

    Args:
        distance_to: [B] picks -> [B, N] distance of every token to its row's pick.
        first: [B, N] decides the first pick, the highest wins.
        nearest: [B, N] distance to the nearest token chosen before; inf where there is none.
        candidates: [B, N] bool.
        n_picks: [B] int64.
    """
    n_picks, start = within(n_picks, candidates), row_starts(candidates)
    score = first.masked_fill(~candidates, -math.inf)
    nearest = nearest.masked_fill(~candidates, -math.inf)  # what is taken or no candidate stays so
    picks: list[Tensor] = []
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
    """[B, K] picks from one [B] for each step; -1 in rows that had finished before it."""
    if not picks:
        return n_picks.new_empty(len(n_picks), 0)
    turn = torch.arange(len(picks), device=n_picks.device)
    return torch.stack(picks, dim=-1).masked_fill(turn >= n_picks[:, None], -1)


def first_token(tokens: Tokens, pivot: str | int, distances: Distances) -> Tensor:
    """[B] place of the token that ``Diversity.pivot`` names; ties go to the lowest index."""
    valid = tokens.valid
    if isinstance(pivot, int):
        score = -(tokens.index - pivot).abs().double()
    elif pivot == "first":
        score = -tokens.index.double()
    elif pivot == "norm":
        score = _lengths(tokens)
    else:  # the sum of cosines to all tokens ranks as the cosine to their mean does
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
