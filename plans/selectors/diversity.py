"""diversity: keep tokens that differ from one another; never looks at the question."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    choice,
    order_mask,
    parameter,
    scored,
    unit,
    within,
)

_PIVOTS = ("farthest", "centre", "norm", "first")


def _is_pivot(value: Any) -> bool:
    return value in _PIVOTS if isinstance(value, str) else type(value) is int and value >= 0


@dataclass(frozen=True)
class Diversity(Selector):
    """Picks one token after the other, each unlike those picked before, by cosine distance.

    Needs:   nothing but the hidden states
    Cost:    O(B N^2 D) for all pairs, then a loop of K steps of O(B N)
    Source:  max_min: Alvar et al. 2025, arXiv 2503.02175 (DivPrune), picked tokens masked; also
             BTP's mmdp, Li et al. 2025, arXiv 2505.22038. max_sum: ToDRE, arXiv 2505.18757 v2,
             stage 1; its pivot is the token of the highest [CLS] attention, which a decoder does
             not know: the paper finds the farthest token 0.2 points worse, a random one too.
    """

    rule: str = choice("max_min", "max_sum")
    """Next is the token farthest from its nearest picked one, or from all picked ones together."""
    pivot: str | int = parameter(
        "farthest", f"be one of {', '.join(_PIVOTS)} or an original index", _is_pivot
    )
    """First token of max_sum: by cosine to the mean of all tokens (``farthest``, ``centre``), the
    longest (``norm``), the first one alive, or the one alive nearest to an original index."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, n_keep = tokens.valid, within(n_keep, tokens.valid)
        if not valid.any():
            return torch.zeros_like(valid)
        cosines = Cosines(tokens.hidden)
        if self.rule == "max_min":
            order = max_min(cosines, valid, n_keep)
        else:
            order = max_sum(cosines, first_token(tokens, self.pivot), valid, n_keep)
        return order_mask(order, valid.shape[-1])


class Cosines:
    """Cosine similarity between the tokens of each row.

    Up to ``WHOLE`` tokens all pairs are computed at once, beyond that only what is asked for.

    Args:
        x: [B, N, D].
    """

    WHOLE: ClassVar[int] = 4096
    CHUNK: ClassVar[int] = 1 << 20  # pairs looked at in one step

    def __init__(self, x: Tensor) -> None:
        self._unit, self._like, self._all = unit(x), x, None
        self._step = max(1, self.CHUNK // max(1, x.shape[1]))
        if x.shape[1] <= self.WHOLE:
            self._all = self._rows(slice(None))  # [B, N, N]
            self._unit = x.new_empty(0)  # not needed any more, and larger

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] cosine of every token to token ``pick`` [B] of its row."""
        if self._all is not None:
            return self._all.gather(1, _row_index(pick, self._all))[:, 0]
        chosen = self._unit.gather(1, _row_index(pick, self._unit))
        return scored((self._unit @ chosen.mT)[..., 0], self._like)

    def highest(self, among: Tensor) -> Tensor:
        """[B, N] highest cosine of each token to another one of ``among`` [B, N] bool.

        -inf where there is no other one.
        """
        n_tokens, parts = among.shape[-1], []
        place = torch.arange(n_tokens, device=among.device)
        for start in range(0, n_tokens, self._step):
            rows = slice(start, start + self._step)
            cosine = self._rows(rows) if self._all is None else self._all[:, rows]
            other = among[:, None] & (place != place[rows, None])
            parts.append(torch.where(other, cosine, -math.inf).amax(-1))
        return torch.cat(parts, dim=-1)

    def _rows(self, rows: slice) -> Tensor:
        return scored(self._unit[:, rows] @ self._unit.mT, self._like)


def _row_index(pick: Tensor, table: Tensor) -> Tensor:
    return pick[:, None, None].expand(-1, 1, table.shape[-1])


def max_min(
    cosines: Cosines, candidates: Tensor, n_picks: Tensor, seeds: Tensor | None = None
) -> Tensor:
    """[B, K] picks in order: the candidate whose nearest chosen token is least similar.

    Args:
        cosines: Similarities of the row's tokens.
        candidates: [B, N] bool, what may be picked; seeds never are.
        n_picks: [B] int64, new picks.
        seeds: [B, N] bool, chosen before. A row without any starts with the candidate that is
            least similar to its nearest neighbour.
    """
    seeds = torch.zeros_like(candidates) if seeds is None else seeds
    candidates = candidates & ~seeds
    seeded = seeds.any(-1, keepdim=True)
    if not candidates.any():
        return n_picks.new_empty(n_picks.shape[0], 0)
    first = 1 - cosines.highest(torch.where(seeded, seeds, candidates))
    nearest = first.masked_fill(~seeded, math.inf)
    return farthest_first(lambda i: 1 - cosines.to(i), first, nearest, candidates, n_picks)


def max_sum(cosines: Cosines, pivot: Tensor, candidates: Tensor, n_picks: Tensor) -> Tensor:
    """[B, K] picks in order: the pivot, then always the smallest summed cosine to those picked.

    Args:
        cosines: Similarities of the row's tokens.
        pivot: [B] int64, first pick.
        candidates: [B, N] bool.
        n_picks: [B] int64, the pivot counted.
    """
    n_picks = within(n_picks, candidates)
    order = pivot.new_full((len(pivot), int(n_picks.max()) if len(pivot) else 0), -1)
    open_, pick, total = candidates.clone(), pivot, torch.zeros((), device=pivot.device)
    for step in range(order.shape[-1]):
        if step:
            pick = total.masked_fill(~open_, math.inf).argmin(-1)
        order[:, step] = torch.where(step < n_picks, pick, -1)
        open_.scatter_(-1, pick[:, None], False)
        total = total + cosines.to(pick)
    return order


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
    n_picks = within(n_picks, candidates)
    order = n_picks.new_full((len(n_picks), int(n_picks.max()) if len(n_picks) else 0), -1)
    open_, score = candidates.clone(), first
    for step in range(order.shape[-1]):
        pick = score.masked_fill(~open_, -math.inf).argmax(-1)
        order[:, step] = torch.where(step < n_picks, pick, -1)
        open_.scatter_(-1, pick[:, None], False)
        score = nearest = torch.minimum(nearest, distance_to(pick))
    return order


def first_token(tokens: Tokens, pivot: str | int) -> Tensor:
    """[B] place of the token that ``Diversity.pivot`` names; ties go to the lowest index."""
    valid, hidden = tokens.valid, tokens.hidden
    if isinstance(pivot, int):
        score = -(tokens.index - pivot).abs().double()
    elif pivot == "first":
        score = -tokens.index.double()
    elif pivot == "norm":
        score = scored(torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float64), hidden)
    else:
        units = unit(hidden) * valid[..., None]
        to_mean = (units @ unit(units.sum(1))[..., None])[..., 0]
        score = scored(to_mean if pivot == "centre" else -to_mean, hidden)
    return score.masked_fill(~valid, -math.inf).argmax(-1)
