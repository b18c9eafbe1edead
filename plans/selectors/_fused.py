"""Greedy loops as kernels of their own, on a GPU with Triton.

One program works on one row of the batch, and one launch on a whole loop: the host would take
longer to launch the kernels of every pick than the GPU takes for the picks. The exceptions are the
greedy map of long rows and the rounds of `vispruner`: they read so much for a pick or a round that
many programs share it. The kernels do what the loops in `_greedy` and in the selectors do, in the
same precision; of equal tokens they too take the same one.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

LONGEST = 4096  # tokens of a row that one program holds
ENABLED = find_spec("triton") is not None


def available(table: Tensor | None) -> bool:
    """Whether the loops over this table of distances [B, N, N] run as one kernel."""
    return ENABLED and table is not None and table.is_cuda and table.shape[-1] <= LONGEST


@torch.library.custom_op("tpcal::farthest_first", mutates_args=())
def farthest_first(
    table: Tensor, score: Tensor, nearest: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    """[B, n_steps] picks of `_greedy.farthest_first`; -1 after the last pick of a row.

    Args:
        table: [B, N, N] distances.
        score: [B, N] scores of the first pick; -inf at tokens that must not be picked.
        nearest: [B, N] distance to the nearest chosen token; -inf likewise.
        n_picks: [B] int64, number of picks, at most ``n_steps``.
        n_steps: Largest number of picks.
    """
    from tpcal.plans.selectors import _triton

    with torch.cuda.device_of(table):  # Triton launches on the current device
        return _triton.farthest_first(table, score, nearest, n_picks, n_steps)


@torch.library.custom_op("tpcal::max_sum", mutates_args=())
def max_sum(table: Tensor, pivot: Tensor, far: Tensor, n_picks: Tensor, n_steps: int) -> Tensor:
    """[B, n_steps] picks of `_greedy.max_sum`; -1 after the last pick of a row.

    Args:
        table: [B, N, N] distances.
        pivot: [B] int64, first picks.
        far: [B, N] distances to the pivot; -inf at tokens that must not be picked.
        n_picks: [B] int64, number of picks, at most ``n_steps``.
        n_steps: Largest number of picks.
    """
    from tpcal.plans.selectors import _triton

    with torch.cuda.device_of(table):  # Triton launches on the current device
        return _triton.max_sum(table, pivot, far, n_picks, n_steps)


@torch.library.custom_op("tpcal::greedy_map", mutates_args=())
def greedy_map(
    table: Tensor, weight: Tensor, n_picks: Tensor, n_steps: int, least: float
) -> Tensor:
    """[B, n_steps] picks of `cdpruner.greedy_map`; -1 after the last pick of a row.

    Args:
        table: [B, N, N] distances.
        weight: [B, N] float64 squared relevance; -1 at tokens that must not be picked.
        n_picks: [B] int64, number of picks, at most ``n_steps``.
        n_steps: Largest number of picks.
        least: Smallest residual that counts.
    """
    from tpcal.plans.selectors import _triton

    with torch.cuda.device_of(table):  # Triton launches on the current device
        return _triton.greedy_map(table, weight, n_picks, n_steps, least)


@torch.library.custom_op("tpcal::covering", mutates_args=())
def covering(
    table: Tensor, covered: Tensor, picked: Tensor, gain: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    """[B, n_steps] picks of `coverage.covering`; -1 after the last pick of a row.

    Args:
        table: [B, N, N] distances.
        covered: [B, N] float64 weights of what is covered.
        picked: [B, N] float64 weights of candidates; 0 at tokens that must not be picked.
        gain: [B, N] float64 gains before the first pick.
        n_picks: [B] int64, number of picks, at most ``n_steps``.
        n_steps: Largest number of picks.
    """
    from tpcal.plans.selectors import _triton

    with torch.cuda.device_of(table):  # Triton launches on the current device
        return _triton.covering(table, covered, picked, gain, n_picks, n_steps)


@torch.library.custom_op("tpcal::distinct", mutates_args=())
def distinct(table: Tensor, n_left: Tensor) -> Tensor:
    """[G, R] bool: the tokens of each group that remain in `vispruner.distinct`.

    Args:
        table: [G, R, R] distances between the tokens of a group, the most important token first.
        n_left: [n_rounds + 1, G] int64 tokens of each group before the first round and after each.
    """
    from tpcal.plans.selectors import _triton

    with torch.cuda.device_of(table):  # Triton launches on the current device
        return _triton.distinct(table, n_left)


@farthest_first.register_fake
@max_sum.register_fake
def _(table: Tensor, a: Tensor, b: Tensor, n_picks: Tensor, n_steps: int) -> Tensor:
    return n_picks.new_empty(len(table), n_steps)


@greedy_map.register_fake
def _(table: Tensor, weight: Tensor, n_picks: Tensor, n_steps: int, least: float) -> Tensor:
    return n_picks.new_empty(len(table), n_steps)


@covering.register_fake
def _(
    table: Tensor, covered: Tensor, picked: Tensor, gain: Tensor, n_picks: Tensor, n_steps: int
) -> Tensor:
    return n_picks.new_empty(len(table), n_steps)


@distinct.register_fake
def _(table: Tensor, n_left: Tensor) -> Tensor:
    return n_left.new_empty(table.shape[:2], dtype=torch.bool)
