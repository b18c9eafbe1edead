"""balanced: tokens the question looks at, and tokens unlike these, in a set share (BTP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.attention import attention_scores
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    fraction,
    number,
    order_mask,
    pair_flops,
    ranks,
    within,
)
from tpcal.plans.selectors.diversity import farthest_first, max_min, row_starts

_APART = 1 << 20  # distance between tokens of different images, more than any within one


@dataclass(frozen=True)
class Balanced(Selector):
    """Attention, max-min diversity and an even spread in space, united and filled up by diversity.

    Every share is of ``n_keep`` and rounds down. Attention picks first, then ``diversity_share``,
    then ``spatial_share``; what one repeats of another counts once, and what does not fit is left
    out. Max-min diversity, seeded with all of these, picks the rest.

    Needs:   hidden states; scores where attention_share is above 0
    Cost:    O(B N^2 D) for all pairs, then loops over the picks of O(B N) each
    Source:  Li et al. 2025, arXiv 2505.22038 v2 (BTP), eq. 7-11. The released code leaves repeats
             in its second stage; here a token counts once.
    """

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attention_share": (0.0, 1.0),
        "diversity_share": (0.0, 1.0),
    }

    attention_share: float = fraction(0.5)
    """Lambda of eq. 7: share picked by attention. 0 needs no attention at all."""
    over_selection: float = number(1.5, low=1)
    """The attention picks are chosen among this many times as many of the highest scores."""
    boundary: str = choice("half", "count", "none")
    """Which of those go first (eq. 8-10): the ones in the first half of the candidates, or the
    first ``n_keep`` candidates (released code). ``none`` takes all the highest scores instead."""
    spatial_share: float = fraction(0.0)
    """Share spread farthest-first over the grid (eq. 11), for the first cut."""
    diversity_share: float = fraction(0.0)
    """Share picked by diversity before it knows the other picks (released LLaVA code)."""
    distance: str = choice("manhattan", "euclidean")
    """Distance on the grid: method section, or appendix 7.7."""
    score: str = choice("softmax", "raw")
    """Attention weights (eq. 3, released Qwen code) or logits (released LLaVA code)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scores"} if self.attention_share > 0 else ())

    def flops(self, work: Work) -> float:
        """All pairs, unless attention picks everything."""
        return 0.0 if self.attention_share == 1 else pair_flops(work.n_tokens, work)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, n_keep = tokens.valid, within(n_keep, tokens.valid)
        chosen, distances = torch.zeros_like(valid), None
        if self.attention_share > 0:
            chosen = admit(chosen, self._by_attention(tokens, n_keep), n_keep)
        if self.diversity_share > 0:
            distances = Distances(tokens.hidden, valid)
            order = max_min(distances, valid, _share(self.diversity_share, n_keep))
            chosen = admit(chosen, order, n_keep)
        if self.spatial_share > 0:
            order = spatial(tokens, _share(self.spatial_share, n_keep), self.distance)
            chosen = admit(chosen, order, n_keep)
        missing = n_keep - chosen.sum(-1)
        if missing.any():
            distances = distances or Distances(tokens.hidden, valid)
            order = max_min(distances, valid, missing, chosen)
            chosen = admit(chosen, order, n_keep)
        return chosen

    def _by_attention(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        scores = attention_scores(tokens, self.score)
        n_picks = _share(self.attention_share, n_keep)
        n_over = _share(self.over_selection, n_picks)
        if self.boundary == "none":
            return rebalanced(scores, tokens.valid, n_over, n_over, n_keep)
        half = self.boundary == "half"
        first = tokens.valid.sum(-1) // 2 if half else n_keep
        return rebalanced(scores, tokens.valid, n_picks, n_over, first)


def _share(share: float, n: Tensor) -> Tensor:
    return (share * n.double()).floor().long()


def rebalanced(
    scores: Tensor, valid: Tensor, n_picks: Tensor, n_over: Tensor, boundary: Tensor
) -> Tensor:
    """[B, K] picks in order: of the ``n_over`` highest scores, those left of the boundary first.

    Each side goes by falling score (BTP eq. 8-10); -1 fills up rows with fewer picks.

    Args:
        scores: [B, N].
        valid: [B, N] bool.
        n_picks: [B] int64.
        n_over: [B] int64, at least n_picks.
        boundary: [B] int64, a place among the candidates.
    """
    rank = ranks(scores, valid)
    place = valid.cumsum(-1) - 1
    left = (rank < n_over[:, None]) & (place < boundary[:, None])
    right = (rank < n_over[:, None]) & ~left
    score = torch.where(left, 2 * rank.shape[-1], torch.where(right, rank.shape[-1], 0)) - rank
    turn = ranks(score, left | right)
    n_picks = torch.minimum(n_picks, (left | right).sum(-1))
    n_orders = int(n_picks.max()) if len(n_picks) else 0
    order = n_picks.new_full((len(n_picks), n_orders + 1), -1)
    turn = torch.where(turn < n_picks[:, None], turn, n_orders)
    places = torch.arange(rank.shape[-1], device=rank.device).expand_as(rank)
    return order.scatter_(-1, turn, places)[:, :n_orders]


def spatial(tokens: Tokens, n_picks: Tensor, distance: str) -> Tensor:
    """[B, K] picks in order: farthest-first over the token grid from the first token (BTP eq. 11).

    Tokens of different images are farther apart than any two of one image, so that every image is
    visited before one is visited twice. Distances are integers or their roots: ties are exact.
    """
    if not tokens.valid.any():
        return n_picks.new_empty(len(n_picks), 0)
    away = 2 * _APART * tokens.image  # as if the images lay side by side, far apart
    places = torch.stack((tokens.grid_row, tokens.grid_col + away), dim=-1).double()  # [B, N, 2]
    flat, start = places.flatten(0, 1), row_starts(tokens.valid)
    power = 1.0 if distance == "manhattan" else 2.0

    def distance_to(pick: Tensor) -> Tensor:
        here = flat.index_select(0, pick + start)[:, None]
        far = torch.cdist(places, here, p=power, compute_mode="donot_use_mm_for_euclid_dist")
        return far[..., 0].clamp_(max=_APART)

    first = torch.zeros_like(tokens.valid, dtype=torch.float64)
    nearest = torch.full_like(first, torch.inf)
    return farthest_first(distance_to, first, nearest, tokens.valid, n_picks)


def admit(chosen: Tensor, order: Tensor, n_keep: Tensor) -> Tensor:
    """[B, N] bool: ``chosen`` and the picks that are new, in their order, until a row is full."""
    n_tokens = chosen.shape[-1]
    if not order.numel():
        return chosen
    new = (order >= 0) & ~chosen.gather(-1, order.clamp(min=0))
    fits = chosen.sum(-1, keepdim=True) + new.cumsum(-1) <= n_keep[:, None]
    return chosen | order_mask(order.masked_fill(~(new & fits), -1), n_tokens)
