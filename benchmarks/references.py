"""Selectors in few lines, as the papers' own code computes them, for one row without filler.

They say what a straightforward implementation costs. They keep about as many tokens as they are
asked for, handle neither batches nor ties, and are not compared with the selectors' choices.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tpcal.plans.selectors.base import Tokens


def max_min(tokens: Tokens, row: int, n_keep: int) -> Tensor:
    """DivPrune: each pick is the farthest from the picks before it."""
    unit = normalize(tokens.hidden[row], dim=-1)
    far = 1 - unit @ unit.T
    picks = far.new_empty(n_keep, dtype=torch.int64)
    for step in range(n_keep):
        if step:
            score = far[picks[:step]].amin(0)
            score[picks[:step]] = -1
        else:
            score = far.topk(2, dim=0, largest=False).values[1]
        picks[step] = score.argmax()
    return picks


def max_sum(tokens: Tokens, row: int, n_keep: int) -> Tensor:
    """ToDRE, stage 1: each pick has the largest summed distance to the picks before it."""
    unit = normalize(tokens.hidden[row], dim=-1)
    far = 1 - unit @ unit.T
    picks = [far.sum(0).argmax()]
    for _ in range(n_keep - 1):
        score = far[torch.stack(picks)].sum(0)
        score[torch.stack(picks)] = -1
        picks.append(score.argmax())
    return torch.stack(picks)


def determinantal(tokens: Tokens, row: int, n_keep: int) -> Tensor:
    """CDPruner: the greedy map of a determinantal process, whose kernel has the relevance."""
    assert tokens.text_hidden is not None
    unit = normalize(tokens.hidden[row].float(), dim=-1)
    relevance = unit @ normalize(tokens.text_hidden[row].float().mean(0), dim=0)
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    left, basis = kernel.diagonal().clone(), kernel.new_zeros(n_keep, len(kernel))
    picks = []
    for step in range(n_keep):
        pick = left.argmax()
        picks.append(pick)
        basis[step] = kernel[pick] - basis[:step, pick] @ basis[:step]
        basis[step] /= left[pick].sqrt()
        left -= basis[step] ** 2
        left[pick] = -torch.inf
    return torch.stack(picks)


def pivots(tokens: Tokens, row: int, n_keep: int) -> Tensor:
    """DART: eight pivots by the norm of keys, and for each the tokens least like it."""
    assert tokens.keys is not None
    assert tokens.text_keys is not None
    assert tokens.text_hidden is not None
    assert tokens.final_norm is not None
    states = tokens.final_norm(torch.cat((tokens.hidden[row], tokens.text_hidden[row])))
    n_tokens = len(tokens.hidden[row])
    images = tokens.keys[row].norm(p=1, dim=-1).topk(4).indices
    texts = tokens.text_keys[row].norm(p=1, dim=-1).topk(4).indices + n_tokens
    unit = normalize(states, dim=-1)
    kept = torch.zeros(n_tokens, dtype=torch.bool, device=states.device)
    kept[images] = True
    for pivot in (*images, *texts):
        likeness = (unit[:n_tokens] @ unit[pivot]).masked_fill(kept, torch.inf)
        kept[likeness.topk(max(0, n_keep - 4) // 8, largest=False).indices] = True
    return kept.nonzero()[:, 0]


def distinct(tokens: Tokens, row: int, n_keep: int) -> Tensor:
    """VisPruner: half by attention, then rounds that remove eight of the even ones."""
    assert tokens.vision_scores is not None
    order = tokens.vision_scores[row].argsort(descending=True)
    important, rest = order[: n_keep // 2], order[n_keep // 2 :]
    unit = normalize(tokens.hidden[row], dim=-1)
    while len(rest) > n_keep - len(important):
        even, odd = rest[::2], rest[1::2]
        likeness = (unit[even] @ unit[odd].T).amax(-1)
        n_out = min(8, len(rest) - (n_keep - len(important)))
        rest = torch.cat((even[likeness.argsort()[:-n_out]], odd))
    return torch.cat((important, rest))


REFERENCES: dict[str, Callable[[Tokens, int, int], Tensor]] = {
    "cdpruner": determinantal,
    "dart": pivots,
    "diversity": max_min,
    "diversity, max_sum": max_sum,
    "vispruner": distinct,
}
