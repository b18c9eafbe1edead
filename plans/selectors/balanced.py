"""balanced: keep tokens the question attends to, and diverse others, in given shares (BTP)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors._greedy import farthest_first, steps
from tpcal.plans.selectors.attention import attention_scores
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    counts_of,
    fraction,
    number,
    pair_flops,
    ranks,
    within,
)
from tpcal.plans.selectors.diversity import max_min

_APART = 1 << 20  # distance between tokens of different images; larger than any within an image


@dataclass(frozen=True)
class Balanced(Selector):
    """Combines tokens of high attention, of high diversity, and evenly spread over the image.

    Every share is a fraction of ``n_keep``, rounded down. Attention picks first, then diversity
    (``diversity_share``), then spatial spread (``spatial_share``). A token that several of them
    pick counts once, and picks beyond ``n_keep`` are dropped. Max-min diversity, with all of these
    tokens as seeds, picks the rest.

    Needs:   hidden states; scores if attention_share is above 0
    Cost:    O(B N^2 D) for all pairs, then loops over the picks of O(B N) each
    Source:  Li et al. 2025, arXiv 2505.22038 v2 (BTP), eq. 7-11. The released code keeps
             duplicates in its second stage; here a token counts once.
    """

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "attention_share": (0.0, 1.0),
        "diversity_share": (0.0, 1.0),
    }

    attention_share: float = fraction(0.5)
    """Share picked by attention: lambda of eq. 7. With 0 no attention is computed."""
    over_selection: float = number(1.5, low=1)
    """Factor of over-selection: k attention picks are chosen among the floor(factor * k) tokens
    with the highest scores."""
    boundary: str = choice("half", "count", "none")
    """Which of the over-selected tokens are picked first (eq. 8-10): those in the first half of
    the candidates (``half``), or those among the first ``n_keep`` candidates (``count``, released
    code). With ``none`` all over-selected tokens are picked."""
    spatial_share: float = fraction(0.0)
    """Share picked farthest-first on the token grid (eq. 11); intended for the first cut."""
    diversity_share: float = fraction(0.0)
    """Share picked by diversity without regard to the other picks (released LLaVA code)."""
    distance: str = choice("manhattan", "euclidean")
    """Distance on the grid: ``manhattan`` (method section) or ``euclidean`` (appendix 7.7)."""
    score: str = choice("softmax", "raw")
    """Attention weights (``softmax``: eq. 3, released Qwen code) or attention logits (``raw``:
    released LLaVA code)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scores"} if self.attention_share > 0 else ())

    @property
    def reads_grid(self) -> bool:
        return self.spatial_share > 0

    def flops(self, work: Work) -> float:
        """FLOPs of the distances between all pairs; 0 if attention picks all tokens."""
        return 0.0 if self.attention_share == 1 else pair_flops(work.n_tokens, work)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, counts = tokens.valid, counts_of(tokens, n_keep)
        n_keep, chosen, distances = within(n_keep, valid), torch.zeros_like(valid), None
        most = max(counts.n_keep, default=0)
        # Step 1: floor(attention_share K) tokens by attention. Distances are computed only when a
        # later step needs them, because they are the expensive part.
        if self.attention_share > 0:
            order = self._by_attention(tokens, n_keep, counts)
            chosen = admit(chosen, order, n_keep)
        # Step 2: floor(diversity_share K) tokens by max-min diversity without seeds; step 3:
        # floor(spatial_share K) tokens spread over the grid. Repeated tokens are not added again.
        if self.diversity_share > 0:
            distances = Distances(tokens.hidden, valid, counts.places(valid))
            n_picks = _share(self.diversity_share, n_keep)
            order = max_min(
                distances, valid, n_picks, most=math.floor(self.diversity_share * most)
            )
            chosen = admit(chosen, order, n_keep)
        if self.spatial_share > 0:
            n_picks = _share(self.spatial_share, n_keep)
            order = spatial(tokens, n_picks, self.distance, math.floor(self.spatial_share * most))
            chosen = admit(chosen, order, n_keep)
        # Step 4: max-min diversity, seeded with all tokens chosen so far, fills the row up to K. A
        # step picks no token twice, so that the largest step bounds how many are missing.
        missing = n_keep - chosen.sum(-1)
        most = steps(missing, max((n - self._fewest(n) for n in counts.n_keep), default=0))
        if most:
            distances = distances or Distances(tokens.hidden, valid, counts.places(valid))
            order = max_min(distances, valid, missing, chosen, most)
            chosen = admit(chosen, order, n_keep)
        return chosen

    def _fewest(self, n_keep: int) -> int:
        """Number of tokens that the largest of the first three steps picks in a row."""
        shares = (self.attention_share, self.diversity_share, self.spatial_share)
        return max(math.floor(share * n_keep) for share in shares)

    def _by_attention(self, tokens: Tokens, n_keep: Tensor, counts: Counts) -> Tensor:
        scores = attention_scores(tokens, self.score)
        n_picks = _share(self.attention_share, n_keep)
        n_over = _share(self.over_selection, n_picks)
        most = max((math.floor(self.attention_share * n) for n in counts.n_keep), default=0)
        if self.boundary == "none":
            most = min(math.floor(self.over_selection * most), max(counts.n_tokens, default=0))
            return rebalanced(scores, tokens.valid, n_over, n_over, n_keep, most)
        half = self.boundary == "half"
        first = tokens.valid.sum(-1) // 2 if half else n_keep
        return rebalanced(scores, tokens.valid, n_picks, n_over, first, most)


def _share(share: float, n: Tensor) -> Tensor:
    return (share * n.double()).floor().long()


def rebalanced(
    scores: Tensor,
    valid: Tensor,
    n_picks: Tensor,
    n_over: Tensor,
    boundary: Tensor,
    most: int | None = None,
) -> Tensor:
    """[B, K] picks in order: of the ``n_over`` highest scores, first those before the boundary.

    Within each side of the boundary the picks are in descending order of score (BTP eq. 8-10).
    Rows with fewer picks end with -1.

    Args:
        scores: [B, N] attention of each token.
        valid: [B, N] bool, False on filler.
        n_picks: [B] int64, number of picks.
        n_over: [B] int64, number of over-selected tokens, at least n_picks.
        boundary: [B] int64, a position among the valid tokens.
        most: At least the largest number of picks of a row; None if it must be read.
    """
    # Attention is biased towards late tokens. BTP therefore over-selects the n_over tokens of the
    # highest score, T = {i : rank(i) < n_over}, and splits T at the boundary b:
    #     left = {i in T : place(i) < b},  right = T without left.
    # All of left is picked before any of right.
    rank = ranks(scores, valid)
    place = valid.cumsum(-1) - 1
    top, on_left = rank < n_over[:, None], place < boundary[:, None]
    # The order "left by rank, then right by rank" is the descending order of 2N - rank on the left
    # and N - rank on the right, because ranks are below N.
    score = torch.where(on_left, 2 * rank.shape[-1], rank.shape[-1]) - rank
    turn = ranks(score, top)
    n_picks = torch.minimum(n_picks, top.sum(-1))
    # order[turn] = place inverts the ranking; tokens that are not picked share a last column,
    # which is cut off.
    n_orders = steps(n_picks, most)
    order = n_picks.new_full((len(n_picks), n_orders + 1), -1)
    turn = torch.where(turn < n_picks[:, None], turn, n_orders)
    places = torch.arange(rank.shape[-1], device=rank.device).expand_as(rank)
    return order.scatter_(-1, turn, places)[:, :n_orders]


def spatial(tokens: Tokens, n_picks: Tensor, distance: str, most: int | None = None) -> Tensor:
    """[B, K] picks in order: farthest-first on the token grid from the first token (BTP eq. 11).

    Tokens of different images are farther apart than any two tokens of one image, so that a token
    of every image is picked before any image has two. Distances are integers or square roots of
    integers, so that ties are exact.

    Args:
        tokens: The candidates.
        n_picks: [B] int64, number of picks.
        distance: ``manhattan`` or ``euclidean``.
        most: At least the largest number of picks of a row; None if it must be read.
    """
    pairs = GridDistances(tokens, 1.0 if distance == "manhattan" else 2.0)
    first = torch.zeros_like(tokens.valid, dtype=torch.float64)
    nearest = torch.full_like(first, torch.inf)
    return farthest_first(pairs, first, nearest, tokens.valid, n_picks, most)


class GridDistances:
    """Distances on the token grid.

    Args:
        tokens: The tokens.
        power: 1 for Manhattan, 2 for Euclidean distances.

    Attributes:
        table: [B, N, N] all distances on a GPU; None on a CPU, where one row at a time is faster.
    """

    def __init__(self, tokens: Tokens, power: float) -> None:
        # The position of a token is (row, col + 2 A image) with A = _APART, as if the images lay
        # side by side at a great distance. Distances are then limited to A, so that all pairs of
        # tokens from different images are equally far apart.
        away = 2 * _APART * tokens.image
        at = torch.stack((tokens.grid_row, tokens.grid_col + away), dim=-1).double()  # [B, N, 2]
        self._places, self._power = at, power
        self._row = torch.arange(len(at), device=at.device)
        whole = at.device.type != "cpu" and at.shape[1] <= Distances.WHOLE
        self.table = self._to(at) if whole else None

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] distance of every token to the token with index ``pick`` [B] in its row."""
        if self.table is not None:
            return self.table[self._row, pick]
        return self._to(self._places[self._row, pick][:, None])[..., 0]

    def _to(self, others: Tensor) -> Tensor:
        mode = "donot_use_mm_for_euclid_dist"
        far = torch.cdist(self._places, others, p=self._power, compute_mode=mode)
        return far.clamp_(max=_APART)


def admit(chosen: Tensor, order: Tensor, n_keep: Tensor) -> Tensor:
    """[B, N] bool: ``chosen`` and the new ones among the picks, in order, until a row is full.

    Args:
        chosen: [B, N] bool, tokens chosen before.
        order: [B, K] int64 picks in order; -1 is no pick.
        n_keep: [B] int64, number of tokens of a full row.
    """
    if not order.numel():
        return chosen
    # One more column, which is cut off, stands for no pick, as a token that was chosen before.
    marks = torch.nn.functional.pad(chosen, (0, 1), value=True)
    places = order.remainder(marks.shape[-1])
    known = marks.gather(-1, places)
    fits = chosen.sum(-1, keepdim=True) + (~known).cumsum(-1) <= n_keep[:, None]
    return marks.scatter_(-1, places, known | fits)[:, :-1]
