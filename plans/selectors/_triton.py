"""The kernels of `_fused`. Importing this module needs Triton."""

# Triton reads annotations of kernels as its own, so that their tensors have none.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _farthest_first(table, first, nearest, n_picks, picks, n_tokens, n_steps, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < n_tokens
    score = tl.load(first + row * n_tokens + at, mask=inside, other=-float("inf"))
    near = tl.load(nearest + row * n_tokens + at, mask=inside, other=-float("inf"))
    for step in range(tl.load(n_picks + row)):
        pick = tl.argmax(score, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick)
        of_pick = table + (row * n_tokens + pick) * n_tokens
        near = tl.minimum(near, tl.load(of_pick + at, mask=inside, other=0.0))
        near = tl.where(at == pick, -float("inf"), near)
        score = near


@triton.jit
def _max_sum(table, summed, n_picks, picks, n_tokens, n_steps, WIDTH: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < n_tokens
    far = tl.load(summed + row * n_tokens + at, mask=inside, other=-float("inf"))
    for step in range(1, tl.load(n_picks + row)):
        pick = tl.argmax(far, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick)
        of_pick = table + (row * n_tokens + pick) * n_tokens
        far += tl.load(of_pick + at, mask=inside, other=0.0)
        far = tl.where(at == pick, -float("inf"), far)


@triton.jit
def _greedy_map(
    table,
    weights,
    spanned,
    n_picks,
    picks,
    n_tokens,
    n_steps,
    LEAST: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < n_tokens
    weight = tl.load(weights + row * n_tokens + at, mask=inside, other=-2.0)
    new, least = tl.full((WIDTH,), 1.0, tl.float64), tl.full((WIDTH,), LEAST, tl.float64)
    basis = spanned + row * n_steps * n_tokens
    for step in range(tl.load(n_picks + row)):
        gain = (weight * tl.maximum(new, least)).to(tl.float32)
        pick = tl.argmax(gain, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick)
        weight = tl.where(at == pick, -1.0, weight)
        of_pick = table + (row * n_tokens + pick) * n_tokens
        part = 1.0 - tl.load(of_pick + at, mask=inside, other=1.0).to(tl.float64)
        for before in range(step):
            earlier = basis + before * n_tokens
            part -= tl.load(earlier + pick) * tl.load(earlier + at, mask=inside, other=0.0)
        length = tl.sum(tl.where(at == pick, new, 0.0), axis=0)
        part *= tl.where(length > least, 1.0 / tl.sqrt(tl.maximum(length, least)), 0.0)
        tl.store(basis + step * n_tokens + at, part, mask=inside)
        tl.debug_barrier()  # the next step reads what other threads have written
        new -= part * part


@triton.jit
def _covering(
    table,
    covered,
    picked,
    gains,
    nearest,
    better,
    n_picks,
    picks,
    n_tokens,
    n_steps,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < n_tokens
    start = row * n_tokens
    own = tl.load(picked + start + at, mask=inside, other=0.0)
    gain = tl.load(gains + start + at, mask=inside, other=0.0)
    near, closed = tl.full((WIDTH,), 1.0, tl.float64), own == 0.0
    for step in range(tl.load(n_picks + row)):
        score = tl.where(closed, -float("inf"), gain * own)
        pick = tl.argmax(score, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick)
        closed = closed | (at == pick)
        # The tokens that the pick covers better are listed, and `nearest` holds their distances
        # to the picks before it. Only their parts of the gains change.
        of_pick = table + (start + pick) * n_tokens
        far = tl.load(of_pick + at, mask=inside, other=2.0).to(tl.float64)
        nearer = far < near
        n_better = tl.sum(nearer.to(tl.int32), axis=0)
        place = tl.cumsum(nearer.to(tl.int32), axis=0) - 1
        tl.store(better + start + place, at, mask=nearer)
        tl.store(nearest + start + at, near, mask=inside)
        tl.debug_barrier()  # what follows reads what other threads have written
        lost = tl.zeros((WIDTH,), tl.float64)
        for first in range(0, n_better, TILE):
            turn = first + tl.arange(0, TILE)
            some = turn < n_better
            token = tl.load(better + start + turn, mask=some, other=0).to(tl.int64)
            weight = tl.load(covered + start + token, mask=some, other=0.0)
            before = tl.load(nearest + start + token, mask=some, other=0.0)
            now = tl.load(of_pick + token, mask=some, other=0.0).to(tl.float64)
            rows = table + (start + token[:, None]) * n_tokens + at[None, :]
            each = tl.load(rows, mask=some[:, None] & inside[None, :], other=2.0).to(tl.float64)
            part = tl.maximum(before[:, None] - each, 0.0) - tl.maximum(now[:, None] - each, 0.0)
            lost += tl.sum(weight[:, None] * part, axis=0)
        gain -= lost
        near = tl.minimum(near, far)
        tl.debug_barrier()  # the next step writes what this one has read


def farthest_first(
    table: Tensor, score: Tensor, nearest: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    """See `_fused.farthest_first`."""
    picks, n_tokens = n_picks.new_full((len(table), n_steps), -1), table.shape[-1]
    given = (table, score.to(table.dtype), nearest.to(table.dtype), n_picks)
    _farthest_first[(len(table),)](
        *map(Tensor.contiguous, given), picks, n_tokens, n_steps, WIDTH=_width(n_tokens)
    )
    return picks


def max_sum(table: Tensor, pivot: Tensor, far: Tensor, n_picks: Tensor, n_steps: int) -> Tensor:
    """See `_fused.max_sum`."""
    picks, n_tokens = n_picks.new_full((len(table), n_steps), -1), table.shape[-1]
    if n_steps:
        picks[:, 0] = pivot.where(n_picks > 0, -1)
    given = (table, far, n_picks)
    _max_sum[(len(table),)](
        *map(Tensor.contiguous, given), picks, n_tokens, n_steps, WIDTH=_width(n_tokens)
    )
    return picks


def greedy_map(
    table: Tensor, weight: Tensor, n_picks: Tensor, n_steps: int, least: float
) -> Tensor:
    """See `_fused.greedy_map`."""
    picks, n_tokens = n_picks.new_full((len(table), n_steps), -1), table.shape[-1]
    spanned = weight.new_empty(len(table), n_steps, n_tokens)
    given = (table, weight, spanned, n_picks)
    _greedy_map[(len(table),)](
        *map(Tensor.contiguous, given),
        picks,
        n_tokens,
        n_steps,
        LEAST=least,
        WIDTH=_width(n_tokens),
    )
    return picks


def covering(
    table: Tensor, covered: Tensor, picked: Tensor, gain: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    """See `_fused.covering`."""
    picks, n_tokens = n_picks.new_full((len(table), n_steps), -1), table.shape[-1]
    nearest, better = torch.empty_like(gain), torch.empty_like(gain, dtype=torch.int32)
    given = (table, covered, picked, gain, nearest, better, n_picks)
    _covering[(len(table),)](
        *map(Tensor.contiguous, given),
        picks,
        n_tokens,
        n_steps,
        WIDTH=_width(n_tokens),
        TILE=8 if n_tokens <= 1024 else 4,
        num_warps=8 if n_tokens <= 1024 else 16,
    )
    return picks


def _width(n_tokens: int) -> int:
    return triton.next_power_of_2(n_tokens)
