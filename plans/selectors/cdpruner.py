"""cdpruner: keep tokens that matter to the question and differ from one another (CDPruner)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import Distances, directions, distances, real_places
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    order_mask,
    pair_flops,
    within,
)
from tpcal.plans.selectors.diversity import ordered, row_starts

_LEAST = 1e-4  # what is new about a token, at least; rounding of the cosines makes up less


@dataclass(frozen=True)
class Cdpruner(Selector):
    """The most probable set of a determinantal point process, found greedily.

    Its kernel is r_i cos(i, j) r_j: every pick has the largest r^2 times the part of its direction
    that the picks before do not span. r is the token's relevance, its cosine to the mean of the
    prompt's text states, from 0 for the least to 1 for the most relevant token of the row. Once
    nothing is new any more the most relevant go on; without text, all are equally relevant.

    Needs:   text
    Cost:    O(B N^2 D) for all pairs, one matrix product, then K steps of O(B N K)
    Source:  Zhang et al. 2025, arXiv 2506.10967 (CDPruner), there on the projector's output. For
             models without a text tower the paper takes the mean of the instruction's embeddings;
             ours are the text behind the first visual token and the states at the cut. The
             original's own kernel runs out of rank and then repeats tokens; ours does not.
    """

    required: ClassVar[frozenset[str]] = frozenset({"text"})

    relevance: str = choice("positive", "negative")
    """Sign of the cosine: positive as in the paper's eq. 5, or negative as in the code released
    for CLIP, whose patches are least alike to the text that describes them."""

    def flops(self, work: Work) -> float:
        """All pairs, the text's mean, and a Cholesky factor of the picks' rows."""
        pairs = pair_flops(work.n_tokens + 1, work)
        return pairs + 1.0 * work.n_tokens * work.n_keep * (work.n_keep - 1)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid = tokens.valid
        if not valid.any():
            return torch.zeros_like(valid)
        relevance = text_relevance(tokens, 1 if self.relevance == "positive" else -1)
        order = greedy_map(Distances(tokens.hidden, valid), relevance, valid, n_keep)
        return order_mask(order, valid.shape[-1])


def text_relevance(tokens: Tokens, sign: int) -> Tensor:
    """[B, N] float64 in [0, 1]: cosine to the mean text state times ``sign``, by its range.

    1 for all tokens of a row without text, or whose tokens are all equally relevant.
    """
    assert tokens.text_hidden is not None
    assert tokens.text_valid is not None
    result = torch.ones_like(tokens.valid, dtype=torch.float64)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    texts = real_places(tokens.text_valid)
    for b, at in enumerate(real_places(tokens.valid)):
        text = tokens.text_hidden[b][texts[b]].to(wide)
        if len(text):
            mean = directions(text.mean(0, keepdim=True).to(tokens.hidden.dtype))
            cosine = -sign * distances(directions(tokens.hidden[b][at]), mean)[:, 0].double()
            result[b, at] = _from_0_to_1(cosine)
    return result


def _from_0_to_1(score: Tensor) -> Tensor:
    if not len(score):
        return score
    low, high = score.amin(), score.amax()
    return torch.where(high > low, (score - low) / (high - low).clamp(min=1e-12), 1.0)


def greedy_map(pairs: Distances, relevance: Tensor, candidates: Tensor, n_picks: Tensor) -> Tensor:
    """[B, K] picks in order: the largest relevance^2 times what is new about the direction.

    What is new is the squared length of the direction that the picks do not span, kept up to date
    by one row of a Cholesky factor a pick. Sums are float64 and compared in float32, so that
    neither company nor filler decides between equals; ties go to the lowest index.

    Args:
        pairs: Distances between the row's tokens.
        relevance: [B, N], at least 0.
        candidates: [B, N] bool.
        n_picks: [B] int64.

    Source:
        Chen, Zhang, Zhou 2018, arXiv 1709.05135, algorithm 1, with the relevance taken out of the
        kernel, so that its size does not blur what is new.
    """
    n_picks, start = within(n_picks, candidates), row_starts(candidates)
    n_steps = int(n_picks.max()) if len(n_picks) else 0
    weight = relevance.double().square().masked_fill_(~candidates, -1)
    new = torch.ones_like(weight)
    spanned = new.new_zeros(len(new), n_steps, new.shape[-1])  # [B, K, N]
    picks: list[Tensor] = []
    for step in range(n_steps):
        pick = (weight * new.clamp(min=_LEAST)).float().argmax(-1)
        picks.append(pick)
        weight.view(-1).index_fill_(0, pick + start, -1)
        before, row = spanned[:, :step], spanned[:, step : step + 1]
        of_pick = before.gather(2, pick[:, None, None].expand(-1, step, 1)).mT
        cosine = 1 - pairs.to(pick).double()[:, None]
        torch.baddbmm(cosine, of_pick, before, alpha=-1, out=row)
        length = new.gather(-1, pick[:, None])[:, None]
        row *= torch.where(length > _LEAST, length.rsqrt(), 0)
        new.addcmul_(row[:, 0], row[:, 0], value=-1)
    return ordered(picks, n_picks)
