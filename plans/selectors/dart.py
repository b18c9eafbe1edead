"""dart: keep a few pivots and, for each of them, the tokens least similar to it (DART)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import directions, distances, real_places
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    image_quotas,
    pair_flops,
    ranks,
    whole,
)

_BLOCK = 64  # tokens whose states are processed together, so that they stay in the CPU's cache


@dataclass(frozen=True)
class Dart(Selector):
    """Keeps pivots, the tokens with the largest L1 norm of keys, and tokens unlike the pivots.

    Each image keeps its exact share of ``n_keep``. It first keeps its pivots. The rest of the
    share is divided equally among the image's pivots and the text pivots: one after the other,
    each adds the tokens with the lowest cosine to it. At layer 0, where no keys exist yet, the
    norm is that of the embeddings.

    Needs:   keys, text, norm
    Cost:    O(B N D P) for P pivots
    Source:  Wen et al. 2025, arXiv 2502.11494 (DART). Counts, visit order and the form at layer 0
             are those of NVIDIA's TensorRT-Edge-LLM, where text pivots may also precede the image;
             here they follow the first visual token. The original keeps 4 + 8 floor(..) tokens;
             tpcal keeps exactly the requested count.
    """

    required: ClassVar[frozenset[str]] = frozenset({"keys", "text", "norm"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "image_pivots": (1, 16),
        "text_pivots": (0, 16),
    }
    removed: ClassVar[Mapping[str, str]] = {
        "visit": "Delete it: pivots are always visited by rank, image pivots first.",
        "image_start": "Delete it: only `visit: original` used it, which has been removed.",
    }

    image_pivots: int = whole(4, low=1)
    """Number of pivots among the tokens of each image."""
    text_pivots: int = whole(4, low=0)
    """Number of pivots among the prompt's text after the first visual token; all images share
    them."""

    def flops(self, work: Work) -> float:
        """FLOPs of the cosines of every token to the pivots of one image and of the text."""
        n_pivots = min(self.image_pivots, work.n_keep) + min(self.text_pivots, work.n_text)
        return pair_flops(n_pivots, work)

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        if not tokens.valid.any():
            return torch.zeros_like(tokens.valid)
        # Step 1: split K over the images, and find the pivots: the tokens with the largest L1 norm
        # |k_i|_1 of their keys, per image and in the text.
        image = tokens.image.clamp(min=0)
        quota = image_quotas(image, tokens.valid, n_keep)  # [B, M]
        pivots = image_pivots(tokens, quota.clamp(max=self.image_pivots))  # [B, M, P]
        texts = text_pivots(tokens, self.text_pivots)  # [B, P']
        return taken_in_turn(tokens, quota, pivots, texts, visit_order(pivots, texts))


def taken_in_turn(
    tokens: Tokens, quota: Tensor, pivots: Tensor, texts: Tensor, turn: Tensor
) -> Tensor:
    """[B, N] bool: the pivots, and for each of them in turn the tokens unlike it.

    Args:
        tokens: The candidates.
        quota: [B, M] tokens that each image keeps.
        pivots: [B, M, P] places of each image's pivots; -1 where there is none.
        texts: [B, P'] places of the text pivots; -1 where there is none.
        turn: [B, M, P + P'] columns of ``distances_to`` in the order they are visited; -1 at the
            end.
    """
    # far[i, t] = 1 - cos(norm(h_i), norm(h_p)) for the pivot p that is visited in turn t.
    image = tokens.image.clamp(min=0)
    per_token = turn.gather(1, image[..., None].expand(-1, -1, turn.shape[-1]))
    far = distances_to(tokens, pivots, texts).gather(-1, per_token.clamp(min=0))
    # The image pivots are kept. Then each pivot in turn t of T adds, among the tokens not chosen
    # yet, the n_t = ceil(n_left / (T - t)) ones farthest from it, so that the parts differ by at
    # most one and sum to the image's share. `ranks` ranks by descending score: 0 is the farthest.
    chosen = _marked(pivots, tokens.valid)
    n_left = quota - (pivots >= 0).sum(-1)
    n_turns = (turn >= 0).sum(-1)
    for step in range(turn.shape[-1]):
        n_now = _ceil_div(n_left, n_turns - step)  # [B, M]
        pool = tokens.valid & ~chosen
        taken = ranks(far[..., step], pool, image) < n_now.gather(-1, image)
        chosen, n_left = chosen | (taken & pool), n_left - n_now
    return chosen


def _ceil_div(n: Tensor, parts: Tensor) -> Tensor:
    return torch.where(parts > 0, (n + parts - 1) // parts.clamp(min=1), 0)


def _marked(pivots: Tensor, valid: Tensor) -> Tensor:
    n_tokens = valid.shape[-1]
    marks = torch.zeros(len(valid), n_tokens + 1, dtype=torch.bool, device=valid.device)
    places = pivots.flatten(1).masked_fill(pivots.flatten(1) < 0, n_tokens)
    return marks.scatter_(-1, places, True)[:, :n_tokens]


def l1_norms(states: Tensor, valid: Tensor) -> Tensor:
    """[B, N] sums of absolute values of ``states`` [B, N, E]; float32, or float64 for float64."""
    wide = torch.promote_types(states.dtype, torch.float32)
    result = torch.zeros_like(valid, dtype=wide)
    for b, at in enumerate(real_places(valid)):
        parts = states[b].detach()[at].split(_BLOCK)
        result[b, at] = torch.cat([part.to(wide, copy=True).abs_().sum(-1) for part in parts])
    return result


def image_pivots(tokens: Tokens, n_pivots: Tensor) -> Tensor:
    """[B, M, P] indices of each image's pivots, in descending order of norm; -1 for fewer pivots.

    Args:
        tokens: The candidates.
        n_pivots: [B, M] int64, number of pivots of each image.
    """
    image, valid = tokens.image.clamp(min=0), tokens.valid
    norms = l1_norms(tokens.hidden if tokens.keys is None else tokens.keys, valid)
    rank = ranks(norms, valid, image)
    most = int(n_pivots.max())
    # The pivot of rank r of image m goes to slot m P + r of the row.
    slot = torch.where(rank < n_pivots.gather(-1, image), image * most + rank, -1)
    return _placed(slot, n_pivots.shape[-1] * most).view(*n_pivots.shape, most)


def text_pivots(tokens: Tokens, n_pivots: int) -> Tensor:
    """[B, P] indices of the text pivots, in descending order of norm; -1 for fewer pivots."""
    states = tokens.text_hidden if tokens.text_keys is None else tokens.text_keys
    if states is None or tokens.text_valid is None:
        return tokens.image.new_empty(len(tokens.image), 0)
    rank = ranks(l1_norms(states, tokens.text_valid), tokens.text_valid)
    n_pivots = min(n_pivots, rank.shape[-1])
    return _placed(torch.where(rank < n_pivots, rank, -1), n_pivots)


def _placed(slot: Tensor, n_slots: int) -> Tensor:
    table = slot.new_full((len(slot), n_slots + 1), -1)
    places = torch.arange(slot.shape[-1], device=slot.device).expand_as(slot)
    return table.scatter_(-1, slot.masked_fill(slot < 0, n_slots), places)[:, :n_slots]


def distances_to(tokens: Tokens, pivots: Tensor, texts: Tensor) -> Tensor:
    """[B, N, P + P'] cosine distance of each token to its image's pivots and to the text pivots.

    The decoder's final norm is applied to the states first.
    """
    places = torch.cat((pivots.flatten(1), texts), dim=-1)  # [B, M P + P']
    wide = torch.promote_types(tokens.hidden.dtype, torch.float32)
    result = tokens.hidden.new_zeros(*tokens.valid.shape, places.shape[-1], dtype=wide)
    for b, at in enumerate(real_places(tokens.valid)):
        columns = (places[b] >= 0).nonzero()[:, 0]
        result[b, :, columns] = _row_distances(tokens, b, at, pivots[b], texts[b])
    image, n_pivots = tokens.image.clamp(min=0), pivots.shape[-1]
    own = image[..., None] * n_pivots + torch.arange(n_pivots, device=image.device)
    return torch.cat((result.gather(-1, own), result[..., pivots[0].numel() :]), dim=-1)


def _row_distances(
    tokens: Tokens, b: int, at: slice | Tensor, pivots: Tensor, texts: Tensor
) -> Tensor:
    """[N, P] distances of one row to its existing pivots, text pivots last; 0 on filler."""
    norm = tokens.final_norm or (lambda x: x)
    row, wide = tokens.hidden[b], torch.promote_types(tokens.hidden.dtype, torch.float32)
    chosen = [norm(row[pivots[pivots >= 0]])]
    if (texts >= 0).any():
        assert tokens.text_hidden is not None
        chosen.append(norm(tokens.text_hidden[b][texts[texts >= 0]]))
    to = directions(torch.cat(chosen).to(wide))
    parts = [distances(directions(norm(part).to(wide)), to) for part in row[at].split(_BLOCK)]
    result = parts[0].new_zeros(len(row), len(to.lengths))
    result[at] = torch.cat(parts)
    return result


def visit_order(pivots: Tensor, texts: Tensor) -> Tensor:
    """[B, M, P + P'] columns of ``distances_to``: image pivots, then text pivots, then -1."""
    texts = texts[:, None].expand(-1, pivots.shape[1], -1)
    both = torch.cat((pivots, texts), dim=-1)
    column = torch.arange(both.shape[-1], device=both.device).expand_as(both)
    order = (both < 0).long().argsort(dim=-1, stable=True)
    return torch.where(both.gather(-1, order) >= 0, column.gather(-1, order), -1)
