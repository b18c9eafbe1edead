"""Greedy loops over tables of distances, one pick a step; one kernel a loop on a GPU with Triton.

A loop on the device takes as many steps as the host says, or as many as it reads if the host says
nothing: rows that need fewer picks ignore the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tpcal.plans.selectors import _fused
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.base import within


class Pairs(Protocol):
    """Distances between the tokens of each row."""

    @property
    def table(self) -> Tensor | None:
        """[B, N, N] all distances; None if they are computed row by row."""

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] distance of every token to the token with index ``pick`` [B] in its row."""


def farthest_first(
    pairs: Pairs,
    first: Tensor,
    nearest: Tensor,
    candidates: Tensor,
    n_picks: Tensor,
    most: int | None = None,
) -> Tensor:
    """[B, K] picks in order: each is the candidate whose nearest chosen token is farthest away.

    Entries are -1 after the last pick of a row. No token is picked twice, even if its distance to
    the chosen ones is 0. Ties go to the lowest index.

    Args:
        pairs: Distances between the tokens of each row.
        first: [B, N] scores of the first pick; the highest wins.
        nearest: [B, N] distance to the nearest token chosen before; inf if there is none.
        candidates: [B, N] bool, tokens that may be picked.
        n_picks: [B] int64, number of picks.
        most: At least the largest number of picks of a row; None if it must be read.
    """
    if isinstance(pairs, Distances) and pairs.table is None and len(first) > 1:
        given = (first, nearest, candidates, n_picks)
        return _each_alone(pairs, farthest_first, given)
    n_picks = within(n_picks, candidates)
    n_steps = steps(n_picks, most)
    score = first.masked_fill(~candidates, -math.inf)
    # nearest[i] = min over chosen j of d(i, j); -inf marks tokens that must not be picked, and a
    # minimum with any distance leaves it at -inf.
    nearest = nearest.masked_fill(~candidates, -math.inf)
    if _fused.available(pairs.table):
        return _fused.farthest_first(pairs.table, score, nearest, n_picks, n_steps)
    picks: list[Tensor] = []
    # Each step picks p = argmax_i nearest[i], then updates nearest[i] = min(nearest[i], d(i, p)):
    # O(N) a step, because the minimum over the earlier picks is already known.
    for _ in range(n_steps):
        picks.append(score.argmax(-1))
        torch.minimum(nearest, pairs.to(picks[-1]), out=nearest)
        nearest.scatter_(-1, picks[-1][:, None], -math.inf)
        score = nearest
    return ordered(picks, n_picks)


def max_sum(
    pairs: Pairs, pivot: Tensor, candidates: Tensor, n_picks: Tensor, most: int | None = None
) -> Tensor:
    """[B, K] picks in order: the pivot, then each time the largest summed distance to the picks.

    Args:
        pairs: Distances between the tokens of each row.
        pivot: [B] int64, first pick.
        candidates: [B, N] bool, tokens that may be picked.
        n_picks: [B] int64, number of picks, the pivot included.
        most: At least the largest number of picks of a row; None if it must be read.
    """
    if isinstance(pairs, Distances) and pairs.table is None and len(pivot) > 1:
        return _each_alone(pairs, max_sum, (pivot, candidates, n_picks))
    n_picks = within(n_picks, candidates)
    n_steps = steps(n_picks, most)
    # far[i] = sum over picks j of d(i, j). Every pick adds one row of distances: O(N) a step
    # instead of O(N K). What is filler or picked already stays at -inf and is never the maximum.
    far = pairs.to(pivot).masked_fill(~candidates, -math.inf)
    far.scatter_(-1, pivot[:, None], -math.inf)
    if _fused.available(pairs.table):
        return _fused.max_sum(pairs.table, pivot, far, n_picks, n_steps)
    picks = [pivot]
    for _ in range(1, n_steps):
        picks.append(far.argmax(-1))
        far += pairs.to(picks[-1])
        far.scatter_(-1, picks[-1][:, None], -math.inf)
    return ordered(picks[: max(n_steps, 1)], n_picks)


def _each_alone(
    pairs: Distances, loop: Callable[..., Tensor], given: tuple[Tensor, ...]
) -> Tensor:
    """[B, K] picks of a loop over rows without a table, in which every pick costs a product.

    Each row runs alone, so that it takes its own number of steps and not that of the longest row.
    """
    rows = zip(*(tensor.split(1) for tensor in given), strict=True)
    picks = [loop(pairs.alone(b), *row)[0] for b, row in enumerate(rows)]
    return pad_sequence(picks, batch_first=True, padding_value=-1)


def steps(n_picks: Tensor, most: int | None) -> int:
    """Number of steps of a loop: the largest of ``n_picks`` [B], or ``most`` on a GPU."""
    if most is not None and n_picks.device.type != "cpu":
        return most
    return int(n_picks.max()) if len(n_picks) else 0


def ordered(picks: list[Tensor], n_picks: Tensor) -> Tensor:
    """[B, K] picks, stacked from the picks [B] of each step; -1 after the last pick of a row."""
    if not picks:
        return n_picks.new_empty(len(n_picks), 0)
    turn = torch.arange(len(picks), device=n_picks.device)
    return torch.stack(picks, dim=-1).masked_fill(turn >= n_picks[:, None], -1)
