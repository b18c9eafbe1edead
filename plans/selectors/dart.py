"""dart: keep a few pivots, and for each of them the tokens that duplicate it least (DART)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    choice,
    image_quotas,
    ranks,
    scored,
    unit,
    whole,
)


@dataclass(frozen=True)
class Dart(Selector):
    """Pivots are the image and text tokens of the longest keys, by L1 norm.

    Each image has its exact share of ``n_keep``: its pivots, and then pivot after pivot an equal
    part of the rest, taken from the tokens of the lowest cosine to that pivot. At layer 0, where
    there are no keys, the norm is that of the embeddings.

    Needs:   keys, text, norm
    Cost:    O(B N D P) for P pivots
    Source:  Wen et al. 2025, arXiv 2502.11494 (DART). Counts, visit order and the form at layer 0
             are those of NVIDIA's TensorRT-Edge-LLM, whose text pivots may stand before the image
             too; ours stand behind the first visual token. The original keeps 4 + 8 floor(..)
             tokens; we keep the count asked for.
    """

    required: ClassVar[frozenset[str]] = frozenset({"keys", "text", "norm"})

    image_pivots: int = whole(4, low=1)
    """Pivots among each image's tokens."""
    text_pivots: int = whole(4, low=0)
    """Pivots among the prompt's text behind the first visual token, shared by all images."""
    visit: str = choice("ranked", "original")
    """Image pivots by rank and then text pivots by rank, or CPython's order of a set of positions,
    which is what the original code does. ``original`` is for comparisons, one row at a time."""
    image_start: int = whole(0, low=0)
    """Position of the first visual token in the prompt; only ``original`` looks at it."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        if not tokens.valid.any():
            return torch.zeros_like(tokens.valid)
        image = tokens.image.clamp(min=0)
        quota = image_quotas(image, tokens.valid, n_keep)  # [B, M]
        pivots = image_pivots(tokens, quota.clamp(max=self.image_pivots))  # [B, M, P]
        texts = text_pivots(tokens, self.text_pivots)  # [B, P']
        turn = visit_order(pivots, texts, tokens, self.visit, self.image_start)  # [B, M, P + P']
        per_token = turn.gather(1, image[..., None].expand(-1, -1, turn.shape[-1]))
        cosine = cosines_to(tokens, pivots, texts).gather(-1, per_token.clamp(min=0))
        chosen = _marked(pivots, tokens.valid)
        n_left = quota - (pivots >= 0).sum(-1)
        n_turns = (turn >= 0).sum(-1)
        for step in range(turn.shape[-1]):
            n_now = _ceil_div(n_left, n_turns - step)  # [B, M]
            pool = tokens.valid & ~chosen
            taken = ranks(-cosine[..., step], pool, image) < n_now.gather(-1, image)
            chosen, n_left = chosen | (taken & pool), n_left - n_now
        return chosen


def _ceil_div(n: Tensor, parts: Tensor) -> Tensor:
    return torch.where(parts > 0, (n + parts - 1) // parts.clamp(min=1), 0)


def _marked(pivots: Tensor, valid: Tensor) -> Tensor:
    n_tokens = valid.shape[-1]
    marks = torch.zeros(len(valid), n_tokens + 1, dtype=torch.bool, device=valid.device)
    places = pivots.flatten(1).masked_fill(pivots.flatten(1) < 0, n_tokens)
    return marks.scatter_(-1, places, True)[:, :n_tokens]


def l1_norm(x: Tensor) -> Tensor:
    """[...] sum of absolute values over the last dimension."""
    return scored(torch.linalg.vector_norm(x, ord=1, dim=-1, dtype=torch.float64), x)


def image_pivots(tokens: Tokens, n_pivots: Tensor) -> Tensor:
    """[B, M, P] places of each image's pivots by rank; -1 where an image has fewer.

    Args:
        tokens: The candidates.
        n_pivots: [B, M] int64.
    """
    image, valid = tokens.image.clamp(min=0), tokens.valid
    norm = l1_norm(tokens.hidden if tokens.keys is None else tokens.keys)
    rank = ranks(norm, valid, image)
    most = int(n_pivots.max())
    slot = torch.where(rank < n_pivots.gather(-1, image), image * most + rank, -1)
    return _placed(slot, n_pivots.shape[-1] * most).view(*n_pivots.shape, most)


def text_pivots(tokens: Tokens, n_pivots: int) -> Tensor:
    """[B, P] places of the text pivots by rank; -1 where a row has fewer."""
    states = tokens.text_hidden if tokens.text_keys is None else tokens.text_keys
    if states is None or tokens.text_valid is None:
        return tokens.image.new_empty(len(tokens.image), 0)
    rank = ranks(l1_norm(states), tokens.text_valid)
    n_pivots = min(n_pivots, rank.shape[-1])
    return _placed(torch.where(rank < n_pivots, rank, -1), n_pivots)


def _placed(slot: Tensor, n_slots: int) -> Tensor:
    table = slot.new_full((len(slot), n_slots + 1), -1)
    places = torch.arange(slot.shape[-1], device=slot.device).expand_as(slot)
    return table.scatter_(-1, slot.masked_fill(slot < 0, n_slots), places)[:, :n_slots]


def cosines_to(tokens: Tokens, pivots: Tensor, texts: Tensor) -> Tensor:
    """[B, N, P + P'] cosine of each token to its image's pivots and to the text pivots.

    States go through the decoder's last norm first.
    """
    norm = tokens.final_norm or (lambda x: x)
    state = unit(norm(tokens.hidden))
    image = tokens.image.clamp(min=0)
    among = state @ _rows(state, pivots.flatten(1)).mT  # [B, N, M P]
    own = image[..., None] * pivots.shape[-1] + torch.arange(pivots.shape[-1], device=image.device)
    columns = [among.gather(-1, own)]
    if texts.shape[-1]:
        assert tokens.text_hidden is not None
        columns.append(state @ _rows(unit(norm(tokens.text_hidden)), texts).mT)
    return scored(torch.cat(columns, dim=-1), tokens.hidden)


def _rows(table: Tensor, places: Tensor) -> Tensor:
    index = places.clamp(min=0)[..., None].expand(-1, -1, table.shape[-1])
    return table.gather(1, index)


def visit_order(
    pivots: Tensor, texts: Tensor, tokens: Tokens, visit: str, image_start: int
) -> Tensor:
    """[B, M, P + P'] columns of ``cosines_to`` in the order they are visited; -1 at the end."""
    texts = texts[:, None].expand(-1, pivots.shape[1], -1)
    both = torch.cat((pivots, texts), dim=-1)
    if visit == "original":
        return _set_order(pivots, texts, tokens, image_start)
    column = torch.arange(both.shape[-1], device=both.device).expand_as(both)
    order = (both < 0).long().argsort(dim=-1, stable=True)
    return torch.where(both.gather(-1, order) >= 0, column.gather(-1, order), -1)


def _set_order(pivots: Tensor, texts: Tensor, tokens: Tokens, image_start: int) -> Tensor:
    n_columns = pivots.shape[-1] + texts.shape[-1]
    n_visual = tokens.valid.sum(-1).tolist()
    turns = []
    for images, shared, n in zip(pivots.tolist(), texts.tolist(), n_visual, strict=True):
        for own, text in zip(images, shared, strict=True):
            places = [p for p in own if p >= 0] + [n + p for p in text if p >= 0]
            columns = [i for i, p in enumerate(own + text) if p >= 0]
            at = dict(zip([image_start + p for p in places], columns, strict=True))
            positions = list(at)  # a set made of a list, as there: made of a dict it differs
            turn = [at[position] for position in set(positions)]
            turns.append(turn + [-1] * (n_columns - len(turn)))
    return torch.tensor(turns, device=pivots.device).view(*pivots.shape[:2], n_columns)
