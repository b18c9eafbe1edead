"""The kernels of `_fused`. Importing this module needs Triton."""

# Triton reads annotations of kernels as its own, so that their tensors have none.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import itertools

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


@triton.jit(do_not_specialize=["step"])
def _next_of_map(
    table,
    weights,
    spanned,
    gains,
    residuals,
    n_picks,
    picks,
    n_tokens,
    n_steps,
    step,
    LEAST: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    if step < tl.load(n_picks + row):
        # Other programs still read what the last step wrote, so that this one writes elsewhere.
        old = (step % 2 * tl.num_programs(0) + row) * n_tokens
        fresh = ((step + 1) % 2 * tl.num_programs(0) + row) * n_tokens
        gain = tl.load(gains + old + at, mask=at < n_tokens, other=-float("inf"))
        pick = tl.argmax(gain, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick, mask=tl.program_id(1) == 0)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        real = column < n_tokens
        of_pick = table + (row * n_tokens + pick) * n_tokens
        part = 1.0 - tl.load(of_pick + column, mask=real, other=1.0).to(tl.float64)
        basis = spanned + row * n_steps * n_tokens
        for first in range(0, step, TILE):
            before = first + tl.arange(0, TILE)
            earlier = basis + before * n_tokens
            factor = tl.load(earlier + pick, mask=before < step, other=0.0)
            tile = earlier[:, None] + column[None, :]
            known = (before < step)[:, None] & real[None, :]
            part -= tl.sum(factor[:, None] * tl.load(tile, mask=known, other=0.0), axis=0)
        least = tl.full((1,), LEAST, tl.float64)
        length = tl.load(residuals + old + pick)
        part *= tl.where(length > least, 1.0 / tl.sqrt(tl.maximum(length, least)), 0.0)
        tl.store(basis + step * n_tokens + column, part, mask=real)
        new = tl.load(residuals + old + column, mask=real, other=0.0) - part * part
        tl.store(residuals + fresh + column, new, mask=real)
        weight = tl.load(weights + row * n_tokens + column, mask=real, other=0.0)
        mine = tl.load(gains + old + column, mask=real, other=0.0)
        picked = (column == pick) | (mine == -float("inf"))
        mine = (weight * tl.maximum(new, least)).to(tl.float32)
        tl.store(gains + fresh + column, tl.where(picked, -float("inf"), mine), mask=real)


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
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    inside = at < n_tokens
    start = row * n_tokens
    tl.store(nearest + start + at, tl.full((WIDTH,), 1.0, tl.float64), mask=inside)
    # Between the parts of a step everything is in memory, so that registers do not spill.
    for step in range(tl.load(n_picks + row)):
        own = tl.load(picked + start + at, mask=inside, other=0.0)
        gain = tl.load(gains + start + at, mask=inside, other=0.0)
        score = tl.where(own == 0.0, -float("inf"), gain * own)
        pick = tl.argmax(score, axis=0, tie_break_left=True).to(tl.int64)
        tl.store(picks + row * n_steps + step, pick)
        # The tokens that the pick covers better are listed, and `nearest` holds their distances
        # to the picks before it. Only their parts of the gains change.
        of_pick = table + (start + pick) * n_tokens
        far = tl.load(of_pick + at, mask=inside, other=2.0).to(tl.float64)
        nearer = far < tl.load(nearest + start + at, mask=inside, other=1.0)
        n_better = tl.sum(nearer.to(tl.int32), axis=0)
        place = tl.cumsum(nearer.to(tl.int32), axis=0) - 1
        tl.store(better + start + place, at, mask=nearer)
        tl.debug_barrier()  # what follows reads what other threads have written
        # A tile is as many tokens and columns as registers hold.
        for left in range(0, n_tokens, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            real = column < n_tokens
            lost = tl.zeros((COLUMNS,), tl.float64)
            for first in range(0, n_better, TILE):
                turn = first + tl.arange(0, TILE)
                some = turn < n_better
                token = tl.load(better + start + turn, mask=some, other=0).to(tl.int64)
                weight = tl.load(covered + start + token, mask=some, other=0.0)
                before = tl.load(nearest + start + token, mask=some, other=0.0)
                now = tl.load(of_pick + token, mask=some, other=0.0).to(tl.float64)
                tile = table + (start + token[:, None]) * n_tokens + column[None, :]
                each = tl.load(tile, mask=some[:, None] & real[None, :], other=2.0).to(tl.float64)
                part = tl.maximum(before[:, None] - each, 0.0)
                part -= tl.maximum(now[:, None] - each, 0.0)
                lost += tl.sum(weight[:, None] * part, axis=0)
            rest = tl.load(gains + start + column, mask=real, other=0.0) - lost
            rest = tl.where(column == pick, -float("inf"), rest)  # no token is picked twice
            tl.store(gains + start + column, rest, mask=real)
        tl.debug_barrier()  # all have read what changes now
        far = tl.load(of_pick + at, mask=inside, other=2.0).to(tl.float64)
        near = tl.minimum(far, tl.load(nearest + start + at, mask=inside, other=1.0))
        tl.store(nearest + start + at, near, mask=inside)


_COLUMNS = 1024
"""Columns of a tile of `_covering`. With 4096 columns in one tile its registers spilled, and 633
picks of 2880 tokens took 108 ms on an H200. That smaller tiles are faster is reasoned from the
registers that the compiler reports; it is not measured."""
_ALONE = 1024
"""Tokens of a row up to which one program makes the whole greedy map. It reads every direction
that the picks span anew for each pick, 4.6 GB for 633 picks of 2880 tokens, which took 93 ms on an
H200. Beyond, each pick is a launch of many programs, which the host needs about 20 us for. That
1024 is about where both take equally long is reasoned from this, not measured."""


@triton.jit
def _nearest_odd(table, left, near, n_left, n_tokens, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    group, n = tl.program_id(0).to(tl.int64), tl.load(n_left + tl.program_id(0))
    even, across = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    listed = left + group * n_tokens
    row = tl.load(listed + 2 * even, mask=2 * even < n, other=0)
    best = tl.full((ROWS,), float("inf"), table.dtype.element_ty)
    if 2 * ROWS * tl.program_id(1) < n:
        for start in range(0, n // 2, COLUMNS):
            odd = 2 * (start + across) + 1
            col = tl.load(listed + odd, mask=odd < n, other=0)
            at = table + (group * n_tokens + row[:, None]) * n_tokens + col[None, :]
            far = tl.load(at, mask=(odd < n)[None, :], other=float("inf"))
            best = tl.minimum(best, tl.min(far, axis=1))
    # The even token of a group that has no odd one is as far as a number can say.
    best = tl.minimum(best, 4.0)
    tl.store(near + group * n_tokens + even, best, mask=2 * even < n)


@triton.jit
def _without_nearest(left, near, after, n_left, n_after, n_tokens, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n, n_kept = tl.load(n_left + row), tl.load(n_after + row)
    turn = tl.arange(0, WIDTH)
    place = WIDTH - 1 - turn  # from the last to the first: of equal tokens the last one leaves
    token = tl.load(left + row * n_tokens + place, mask=place < n, other=0)
    even = (place < n) & (place % 2 == 0)
    score = tl.load(near + row * n_tokens + place // 2, mask=even, other=float("inf"))
    stays = (place < n).to(tl.int32)
    for _ in range(n - n_kept):
        out = tl.argmin(score, axis=0, tie_break_left=True)
        score = tl.where(turn == out, float("inf"), score)
        stays = tl.where(turn == out, 0, stays)
    new = n_kept - tl.cumsum(stays, axis=0)
    tl.store(after + row * n_tokens + new, token, mask=stays > 0)


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
    if table.shape[-1] > _ALONE:
        return _greedy_map_by_column(table, weight, n_picks, n_steps, least)
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


def _greedy_map_by_column(
    table: Tensor, weight: Tensor, n_picks: Tensor, n_steps: int, least: float
) -> Tensor:
    picks, (n_rows, n_tokens) = n_picks.new_full((len(table), n_steps), -1), weight.shape
    spanned = weight.new_empty(n_rows, n_steps, n_tokens)
    # Two buffers each, which the steps read and write in turns.
    gains, residuals = weight.float().repeat(2, 1, 1), weight.new_ones(2, n_rows, n_tokens)
    given = [x.contiguous() for x in (table, weight, spanned, gains, residuals, n_picks)]
    columns = 32  # of one program
    for step in range(n_steps):
        _next_of_map[(n_rows, triton.cdiv(n_tokens, columns))](
            *given,
            picks,
            n_tokens,
            n_steps,
            step,
            LEAST=least,
            WIDTH=_width(n_tokens),
            COLUMNS=columns,
            TILE=64,
        )
    return picks


def covering(
    table: Tensor, covered: Tensor, picked: Tensor, gain: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    """See `_fused.covering`."""
    picks, n_tokens = n_picks.new_full((len(table), n_steps), -1), table.shape[-1]
    nearest, better = torch.empty_like(gain), torch.empty_like(gain, dtype=torch.int32)
    given = (table, covered, picked, gain.clone(), nearest, better, n_picks)
    _covering[(len(table),)](
        *map(Tensor.contiguous, given),
        picks,
        n_tokens,
        n_steps,
        WIDTH=_width(n_tokens),
        COLUMNS=min(_width(n_tokens), _COLUMNS),
        TILE=8 if n_tokens <= 1024 else 4,
        num_warps=8 if n_tokens <= 1024 else 16,
    )
    return picks


def distinct(table: Tensor, n_left: Tensor) -> Tensor:
    """See `_fused.distinct`."""
    n_groups, n_tokens = table.shape[:2]
    place = torch.arange(n_tokens, dtype=torch.int32, device=table.device)
    left, after = place.repeat(n_groups, 1), place.new_empty(n_groups, n_tokens)
    table, near, rows = table.contiguous(), table.new_empty(n_groups, n_tokens), 16
    for before, then in itertools.pairwise(n_left.contiguous()):
        grid = n_groups, triton.cdiv(n_tokens, 2 * rows)
        _nearest_odd[grid](table, left, near, before, n_tokens, ROWS=rows, COLUMNS=32)
        _without_nearest[(n_groups,)](
            left, near, after, before, then, n_tokens, WIDTH=_width(n_tokens), num_warps=8
        )
        left, after = after, left
    stays = torch.zeros(n_groups, n_tokens + 1, dtype=torch.bool, device=table.device)
    kept = torch.where(place < n_left[-1, :, None], left, n_tokens)
    return stays.scatter_(-1, kept.long(), True)[:, :-1].contiguous()


def _width(n_tokens: int) -> int:
    return triton.next_power_of_2(n_tokens)
