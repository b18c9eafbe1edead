"""cdpruner: keep tokens relevant to the question that differ from one another (CDPruner)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors import _fused
from tpcal.plans.selectors._cosine import Distances, directions, distances
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors._greedy import ordered, steps
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    choice,
    counts_of,
    order_mask,
    pair_flops,
    within,
)

_LEAST = 1e-4  # smallest residual that counts; rounding errors of the cosines stay below it


@dataclass(frozen=True)
class Cdpruner(Selector):
    """The most probable set of a determinantal point process (DPP), approximated greedily.

    The kernel is L_ij = r_i cos(i, j) r_j with the relevance r_i of token i. Each pick maximises
    r_i^2 times the squared length of the part of its direction that the earlier picks do not span.
    The relevance is the token's cosine to the mean of the prompt's text states, rescaled linearly
    so that the least relevant token of the row has 0 and the most relevant one 1. When the picks
    span all directions, the remaining tokens are picked by relevance. Without text all tokens are
    equally relevant.

    Needs:   text
    Cost:    O(B N^2 D) for all pairs, one matrix product, then K steps of O(B N K)
    Source:  Zhang et al. 2025, arXiv 2506.10967 (CDPruner), which selects on the projector's
             output. For models without a text tower the paper uses the mean of the instruction's
             embeddings; tpcal uses the text after the first visual token, and the states at the
             cut. When the original's kernel has no rank left it picks tokens repeatedly; tpcal
             picks every token at most once.
    """

    required: ClassVar[frozenset[str]] = frozenset({"text"})

    relevance: str = choice("positive", "negative")
    """Sign of the cosine: ``positive`` as in the paper's eq. 5, or ``negative`` as in the code
    released for CLIP, whose patches are least similar to the text that describes them."""

    def flops(self, work: Work) -> float:
        """FLOPs of all pairs, of the cosines to the text's mean, and of the Cholesky factor."""
        pairs = pair_flops(work.n_tokens + 1, work)
        return pairs + 1.0 * work.n_tokens * work.n_keep * (work.n_keep - 1)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        valid, counts = tokens.valid, counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(valid)
        relevance = text_relevance(tokens, 1 if self.relevance == "positive" else -1, counts)
        pairs = Distances(tokens.hidden, valid, counts.places(valid))
        order = greedy_map(pairs, relevance, valid, n_keep, max(counts.n_keep))
        return order_mask(order, valid.shape[-1])


def text_relevance(tokens: Tokens, sign: int, counts: Counts | None = None) -> Tensor:
    """[B, N] float64 in [0, 1]: cosine to the mean text state times ``sign``, rescaled by row.

    All tokens have 1 in a row without text, and in a row whose tokens are equally relevant.
    """
    assert tokens.text_hidden is not None
    assert tokens.text_valid is not None
    result = torch.ones_like(tokens.valid, dtype=torch.float64)
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    counts = counts or counts_of(tokens, tokens.n_original)
    texts = counts.text_places(tokens.text_valid)
    for b, at in enumerate(counts.places(tokens.valid)):
        text = tokens.text_hidden[b][texts[b]].to(wide)
        if len(text):
            # r_i = (c_i - min c) / (max c - min c) with c_i = sign * cos(h_i, mean of the text).
            # A distance is 1 - cos, so that -distance ranks and rescales exactly as the cosine.
            mean = directions(text.mean(0, keepdim=True))
            cosine = -sign * distances(directions(tokens.hidden[b][at]), mean)[:, 0].double()
            result[b, at] = _from_0_to_1(cosine)
    return result


def _from_0_to_1(score: Tensor) -> Tensor:
    if not len(score):
        return score
    low, high = score.amin(), score.amax()
    return torch.where(high > low, (score - low) / (high - low).clamp(min=1e-12), 1.0)


def greedy_map(
    pairs: Distances,
    relevance: Tensor,
    candidates: Tensor,
    n_picks: Tensor,
    most: int | None = None,
) -> Tensor:
    """[B, K] picks in order, each with the largest relevance^2 times residual of its direction.

    The residual of a token is the squared length of the part of its unit direction that the picks
    do not span. Sums are float64 and are compared in float32, so that other rows and filler do not
    decide between equal tokens; ties go to the lowest index.

    Args:
        pairs: Distances between the tokens of each row.
        relevance: [B, N], at least 0.
        candidates: [B, N] bool, tokens that may be picked.
        n_picks: [B] int64, number of picks.
        most: At least the largest number of picks of a row; None if it must be read.

    Source:
        Chen, Zhang, Zhou 2018, arXiv 1709.05135, algorithm 1. The relevance is kept apart from the
        kernel of cosines, so that small relevances do not lose precision in the residuals.
    """
    # A DPP gives a set S a probability proportional to det(L_S). Adding token i multiplies the
    # determinant by r_i^2 x_i, where the residual x_i = 1 - |projection of u_i on span{u_j : j in
    # S}|^2 belongs to the unit directions u alone. With the Cholesky factor of C_S (C_ij = u_i .
    # u_j), row j of `spanned` holds the coordinate e_ji of every token i along the j-th
    # orthonormal direction, and x_i = 1 - sum_j e_ji^2.
    n_picks = within(n_picks, candidates)
    n_steps = steps(n_picks, most)
    weight = relevance.detach().double().square().masked_fill_(~candidates, -1)
    if _fused.available(pairs.table):
        return _fused.greedy_map(pairs.table, weight, n_picks, n_steps, _LEAST)
    if pairs.table is not None and weight.device.type == "cpu":
        rows = zip(pairs.table, weight, n_picks.tolist(), strict=True)
        return torch.stack([_picks_of_row(*row, n_steps) for row in rows])
    new = torch.ones_like(weight)
    spanned = new.new_zeros(len(new), n_steps, new.shape[-1])  # [B, K, N]
    picks: list[Tensor] = []
    for step in range(n_steps):
        # Step 1: p = argmax_i r_i^2 max(x_i, least). The lower limit makes the relevance alone
        # decide once every residual is only rounding error. Picked tokens and filler have weight
        # -1, below every candidate.
        pick = (weight * new.clamp(min=_LEAST)).float().argmax(-1)
        picks.append(pick)
        weight.scatter_(-1, pick[:, None], -1)
        # Step 2: the new row of the Cholesky factor, for all tokens at once:
        #     e_pi = (C_pi - sum over earlier picks j of e_jp e_ji) / sqrt(x_p)
        # A pick without a residual adds no direction: its row is 0.
        before, row = spanned[:, :step], spanned[:, step : step + 1]
        of_pick = before.gather(2, pick[:, None, None].expand(-1, step, 1)).mT
        cosine = 1 - pairs.to(pick).double()[:, None]
        torch.baddbmm(cosine, of_pick, before, alpha=-1, out=row)
        length = new.gather(-1, pick[:, None])[:, None]
        row *= torch.where(length > _LEAST, length.rsqrt(), 0)
        # Step 3: the residuals lose what the new direction explains: x_i = x_i - e_pi^2.
        new.addcmul_(row[:, 0], row[:, 0], value=-1)
    return ordered(picks, n_picks)


def _picks_of_row(far: Tensor, weight: Tensor, n_picks: int, n_steps: int) -> Tensor:
    """[n_steps] picks of one row on a CPU; -1 after the last one.

    These are the steps of `greedy_map`. Numbers that the host reads for free make them views
    instead of copies, which halves their time.
    """
    new, gain = torch.ones_like(weight), torch.empty(len(weight), dtype=torch.float32)
    spanned, scaled = weight.new_empty(n_picks, len(weight)), torch.empty_like(weight)
    picks: list[int] = []
    for step in range(n_picks):
        torch.clamp(new, min=_LEAST, out=scaled).mul_(weight)
        pick = int(gain.copy_(scaled).argmax())
        picks.append(pick)
        weight[pick] = -1
        row = torch.sub(1, far[pick], out=spanned[step])
        row.addmv_(spanned[:step].mT, spanned[:step, pick].contiguous(), alpha=-1)
        length = float(new[pick])
        row.mul_(length**-0.5 if length > _LEAST else 0)
        new.addcmul_(row, row, value=-1)
    return torch.tensor(picks + [-1] * (n_steps - n_picks))
