"""coverage: keep the tokens that best stand for all others, or for those attended to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors import _fused
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors._greedy import ordered
from tpcal.plans.selectors.attention import attention_scores
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    counts_of,
    number,
    order_mask,
    pair_flops,
    within,
)

_LEVELS = 2.0**20
"""Weights are multiples of 1 / _LEVELS, as distances of float32 are of 2^-18. So float64 holds
their products and sums exactly, and neither the order of additions nor filler decides between
equal tokens."""


@dataclass(frozen=True)
class Coverage(Selector):
    """Picks tokens one by one, each the one by which the picks stand better for all tokens.

    With the cosine distance d(i, j) = 1 - cos(i, j), a set S of picks leaves token i uncovered by
    min over j in S of d(i, j)^p, or by 1 if no pick has anything in common with it. A candidate
    gains what it takes from the sum of this over all tokens, and the next pick is the one that
    gains the most. The exponent p is ``distance_power``: with a larger one, tokens that are far
    from all picks count more, and the rule comes closer to max-min diversity.

    Attention enters as a weight: w_i is the attention that the last prompt token pays to token i,
    divided by the largest of the row, to the power ``attention_power``. It multiplies the part
    that token i contributes to a gain, or the whole gain of candidate i (``attended``).

    Needs:   hidden states; scores if attention_power is above 0
    Cost:    O(B N^2 D) for all pairs, then O(B N^2 log K) for the picks, each of which costs N
             for each token that it covers better; on a GPU without Triton O(B N^2 K)
    Source:  the facility location function, maximised greedily: Nemhauser, Wolsey and Fisher 1978.
             Deng et al. 2025, arXiv 2510.24214 (SCOPE) multiply the gain of a candidate by its own
             saliency, which is ``picks``; the saliency is attention inside the vision tower there,
             and the attention of the last prompt token here. ``covered`` is tpcal's own.
    """

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "distance_power": (1.0, 3.0),
        "attention_power": (0.0, 2.0),
        "attended": ("covered", "picks"),
    }

    distance_power: float = number(1.5, low=1)
    """Exponent p of distances: 1 minimises their sum as k-medians does, 2 that of their squares as
    k-means does."""
    attention_power: float = number(0.0, low=0)
    """Exponent of the attention in the weights. With 0 all tokens count alike, and no attention is
    computed; with 1 a token that gets half the attention of another counts half as much."""
    attended: str = choice("covered", "picks")
    """Whether tokens with much attention are to be covered well (``covered``), or to be picked
    (``picks``)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"scores"} if self.attention_power > 0 else ())

    def flops(self, work: Work) -> float:
        """FLOPs of the distances between all pairs, and of the sums over what each pick changes.

        The k-th pick covers about N / k tokens better, so that K picks change N ln K sums of N.
        """
        sums = 2.0 * work.n_tokens**2 * (2 + math.log(max(1, work.n_keep)))
        return pair_flops(work.n_tokens, work) + sums

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, counts = tokens.valid, counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(valid)
        pairs = Distances(tokens.hidden, valid, counts.places(valid), self.distance_power)
        weight = self._weights(tokens)
        alike = valid.double()
        weights = (weight, alike) if self.attended == "covered" else (alike, weight)
        order = covering(pairs, *weights, n_keep, max(counts.n_keep))
        return order_mask(order, valid.shape[-1])

    def _weights(self, tokens: Tokens) -> Tensor:
        """[B, N] float64 in (0, 1]; 0 on filler."""
        if self.attention_power == 0:
            return tokens.valid.double()
        seen = attention_scores(tokens, "softmax").double().masked_fill(~tokens.valid, 0)
        seen = seen.nan_to_num(nan=0.0, posinf=0.0)
        share = seen / seen.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        # Rounded up, so that a token that gets no attention still counts for a little.
        weight = (share.pow(self.attention_power) * _LEVELS).ceil().clamp(min=1) / _LEVELS
        return weight.masked_fill(~tokens.valid, 0)


def covering(
    pairs: Distances, covered: Tensor, picked: Tensor, n_picks: Tensor, most: int
) -> Tensor:
    """[B, K] picks in order, each with the largest weighted gain in coverage.

    Entries are -1 after the last pick of a row. Ties go to the lowest index.

    Args:
        pairs: Distances between the tokens of each row.
        covered: [B, N] float64 weights of what is covered; 0 on filler.
        picked: [B, N] float64 weights of the gains of candidates; 0 on tokens that are none.
        n_picks: [B] int64, number of picks.
        most: At least the largest number of picks of a row.
    """
    n_picks = within(n_picks, picked > 0)
    if _fused.available(pairs.table):
        assert pairs.table is not None
        gain = pairs.closeness(covered)
        return _fused.covering(pairs.table, covered, picked, gain, n_picks, most)
    if picked.device.type == "cpu" or pairs.table is None:
        picks, gain = n_picks.new_full((len(picked), most), -1), pairs.closeness(covered)
        for b, n in enumerate(n_picks.tolist()):
            picks[b, :n] = _of_row(partial(pairs.to_all, b), covered[b], picked[b], gain[b], n)
        return picks
    return _of_rows(pairs, pairs.table, covered, picked, n_picks, most)


def _of_row(
    to_all: Callable[[Tensor], Tensor],
    covered: Tensor,
    picked: Tensor,
    gain: Tensor,
    n_picks: int,
) -> Tensor:
    """[n_picks] picks of one row, by bookkeeping; ``gain`` [N] is changed in place."""
    # near[i] is the distance of token i to the nearest pick, to the power p, and at first 1, the
    # distance of what has nothing in common. A candidate u gains
    #     gain[u] = sum over i of w_i max(0, near[i] - d(i, u)).
    # A new pick changes near only at the tokens that it covers better, about N / k of them at the
    # k-th pick, and the gains change by what these tokens contributed before and contribute now.
    near, closed = torch.ones_like(covered), picked == 0
    picks = []
    for _ in range(n_picks):
        picks.append((gain * picked).masked_fill(closed, -torch.inf).argmax())
        now = torch.minimum(near, to_all(picks[-1][None])[0].double())
        better = (now < near).nonzero()[:, 0]
        block = to_all(better).double()
        lost = (near[better, None] - block).clamp(min=0) - (now[better, None] - block).clamp(min=0)
        gain -= covered[better] @ lost
        closed[picks[-1]] = True
        near = now
    return torch.stack(picks) if picks else closed.new_empty(0, dtype=torch.int64)


def _of_rows(
    pairs: Distances,
    table: Tensor,
    covered: Tensor,
    picked: Tensor,
    n_picks: Tensor,
    most: int,
) -> Tensor:
    """[B, most] picks of all rows at once, in steps of equal size: nothing is read back."""
    near, picks, closed = torch.ones_like(covered), [], picked == 0
    for _ in range(most):
        gain = (covered[:, None] @ (near[..., None] - table).clamp(min=0))[:, 0]
        picks.append((gain * picked).masked_fill(closed, -torch.inf).argmax(-1))
        near = torch.minimum(near, pairs.to(picks[-1]))
        closed.scatter_(-1, picks[-1][:, None], True)
    return ordered(picks, n_picks)
