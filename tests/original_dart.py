"""DART as its authors' code does it: pivots are visited in CPython's order of a set of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from tpcal.plans.selectors.base import Tokens, image_quotas
from tpcal.plans.selectors.dart import image_pivots, taken_in_turn, text_pivots


def select(tokens: Tokens, n_keep: Tensor, image_start: int) -> Tensor:
    """[B, N] bool: the tokens that stay of prompts whose first visual token is at `image_start`."""
    quota = image_quotas(tokens.image.clamp(min=0), tokens.valid, n_keep)
    pivots, texts = image_pivots(tokens, quota.clamp(max=4)), text_pivots(tokens, 4)
    return taken_in_turn(
        tokens, quota, pivots, texts, set_order(pivots, texts, tokens, image_start)
    )


def set_order(pivots: Tensor, texts: Tensor, tokens: Tokens, image_start: int) -> Tensor:
    """[B, M, P + P'] columns of `distances_to` in the order they are visited; -1 at the end."""
    texts = texts[:, None].expand(-1, pivots.shape[1], -1)
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
