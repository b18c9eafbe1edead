"""Cosine distances between the tokens of each row, independent of the other rows of the batch.

The order in which a matrix product adds depends on its shape, so that a selection could depend on
what else is in the batch. Here every row is multiplied by itself, over its own tokens only, and
distances are rounded to a multiple of 2^-g that is larger than rounding errors. Equal tokens
therefore have exactly equal distances, and sums of distances are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._counts import real_places

_HALF = (torch.bfloat16, torch.float16)
_GRID = {torch.float64: 40, torch.float32: 18}  # g, in bits
_ALIGNED = 64  # bytes; alignment of every new tensor on a CPU


@dataclass(frozen=True)
class Directions:
    """Tokens prepared for `distances`; made by `directions`."""

    states: Tensor
    """[n, D] states."""
    lengths: Tensor
    """[n] float32 or float64 Euclidean norms of the states."""

    def at(self, places: slice | Tensor) -> Directions:
        """The tokens at these indices."""
        return Directions(self.states[places], self.lengths[places])


def directions(x: Tensor) -> Directions:
    """The tokens [n, D], prepared for `distances`.

    Half precision is converted to float32. A GPU may accumulate parts of a product in half
    precision, and a CPU without units for it multiplies it many times more slowly. With float32
    everywhere the choice does not depend on the processor either.
    """
    if x.dtype in _HALF:
        x = x.float()
    elif x.data_ptr() % _ALIGNED:  # the order of additions may depend on the alignment of a row
        x = x.clone()
    return Directions(x, torch.linalg.vector_norm(x, dim=-1))


def distances(a: Directions, b: Directions) -> Tensor:
    """[n, m] distances 1 - cos(a_i, b_j), rounded to multiples of 2^-g.

    They are float32, or float64 for float64. A token of length 0 has distance 1 to all others.
    """
    # d_ij = 1 - a_i . b_j / (|a_i| |b_j|)
    product = a.states @ b.states.mT
    result = product.div_(a.lengths[:, None] * b.lengths).neg_().add_(1)
    result = result.nan_to_num_(nan=1.0, posinf=1.0, neginf=1.0)
    steps = 2.0 ** _GRID[a.states.dtype]
    return result.mul_(steps).round_().mul_(1 / steps)


def all_distances(a: Directions) -> Tensor:
    """[n, n] distances between all pairs; about half are computed, the others are mirrored."""
    n_tokens = len(a.lengths)
    result = a.lengths.new_empty(n_tokens, n_tokens)
    # Blocks of rows: block r holds the distances from row r on, and d_ij = d_ji gives the columns
    # below it. More than three blocks, or smaller ones, cost more than they save. On a GPU one
    # product of all pairs costs less than the kernels of several.
    if a.states.device.type != "cpu":
        return distances(a, a)
    step = max(256, -(-n_tokens // 3))
    for start in range(0, n_tokens, step):
        here, after = slice(start, start + step), slice(start + step, None)
        block = distances(a.at(here), a.at(slice(start, None)))
        result[here, start:] = block
        result[after, here] = block[:, step:].mT
    return result


class Distances:
    """Cosine distances between the tokens of each row; 0 between a token and filler.

    All pairs of a row of up to ``WHOLE`` tokens are computed at once: the first pick of most rules
    needs them, and one matrix product is the fastest way. Distances of longer rows are computed
    when they are requested, to bound the memory.

    Args:
        x: [B, N, D] states.
        valid: [B, N] bool, False on filler.
        places: Indices of the tokens of each row; None if they must be read from ``valid``.
        power: Exponent to which every distance is raised, before it is rounded again.
    """

    WHOLE: ClassVar[int] = 4096
    CHUNK: ClassVar[int] = 1 << 22  # number of pairs computed in one step for longer rows

    def __init__(
        self,
        x: Tensor,
        valid: Tensor,
        places: list[slice | Tensor] | None = None,
        power: float = 1.0,
    ) -> None:
        n_tokens = valid.shape[-1]
        self._like = torch.zeros((), dtype=_wide(x), device=x.device)
        self._valid, self._power = valid, power
        self._places = real_places(valid) if places is None else places
        self._start = torch.arange(len(valid), device=x.device) * n_tokens
        self._rows: list[Tensor | Directions] = []
        self._table: Tensor | None = None
        if n_tokens <= self.WHOLE:  # then one table holds the distances of the whole batch
            self._table = self._like.new_zeros(*valid.shape, n_tokens)
        for b, at in enumerate(self._places):
            row = directions(x[b].detach()[at])
            if self._table is not None:
                self._table[b][_pairs(at)] = _raised(all_distances(row), power)
            else:
                whole = len(row.lengths) <= self.WHOLE
                self._rows.append(_raised(all_distances(row), power) if whole else row)

    @property
    def table(self) -> Tensor | None:
        """[B, N, N] distances of all pairs; None for rows that are too long."""
        return self._table

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] distance of every token to the token with index ``pick`` [B] in its row."""
        if self._table is not None:
            return self._table.view(-1, self._valid.shape[-1]).index_select(0, pick + self._start)
        result = self._like.new_zeros(self._valid.shape)
        for b, known in enumerate(self._rows):
            if len(known.lengths if isinstance(known, Directions) else known):  # else all filler
                result[b] = self.to_all(b, pick[b : b + 1])[0]
        return result

    def alone(self, row: int) -> Distances:
        """The distances of one row without a table, as of a batch of one."""
        one, only = copy(self), slice(row, row + 1)
        one._valid, one._places = self._valid[only], self._places[only]
        one._rows = self._rows[only]
        return one

    def to_all(self, row: int, picks: Tensor) -> Tensor:
        """[c, N] distances of the tokens with the indices ``picks`` [c] to all tokens of a row."""
        if self._table is not None:
            return self._table[row][picks]
        at, known = self._places[row], self._rows[row]
        result = self._like.new_zeros(len(picks), self._valid.shape[-1])
        local = (self._valid[row].cumsum(-1) - 1)[picks].clamp(min=0)
        if isinstance(known, Directions):
            result[:, at] = self._between(known.at(local), known)
        else:
            result[:, at] = known[local]
        return result

    def nearest(self, among: Tensor) -> Tensor:
        """[B, N] distance to the nearest other token of ``among`` [B, N] bool; inf if none."""
        result = self._like.new_full(self._valid.shape, torch.inf)
        for b, columns, start, block in self._blocks():
            others = torch.where(among[b][columns], block, torch.inf)
            others.diagonal(start).fill_(torch.inf)
            result[b, self._rows_of(columns, start, block)] = others.amin(-1)
        return result

    def total(self) -> Tensor:
        """[B, N] float64 sum of the distances to all tokens of the row."""
        result = torch.zeros_like(self._valid, dtype=torch.float64)
        for b, columns, start, block in self._blocks():
            sums = block.sum(-1, dtype=torch.float64)
            result[b, self._rows_of(columns, start, block)] = sums
        return result

    def closeness(self, weight: Tensor) -> Tensor:
        """[B, N] float64: for each token u the sum over i of w_i max(0, 1 - d(i, u)).

        Args:
            weight: [B, N] float64 weights w; 0 on filler.
        """
        result = torch.zeros_like(weight)
        for b, columns, start, block in self._blocks():
            rows = self._rows_of(columns, start, block)
            result[b, columns] += weight[b, rows] @ (1 - block).clamp(min=0).double()
        return result

    def _blocks(self) -> Iterator[tuple[int, slice | Tensor, int, Tensor]]:
        """Yields (row, indices of its tokens, first token of the block, distances [c, n])."""
        if self._table is not None:
            yield from ((b, slice(None), 0, table) for b, table in enumerate(self._table))
        for b, (at, row) in enumerate(zip(self._places, self._rows, strict=False)):
            if isinstance(row, Tensor):
                if len(row):  # a row of text has no tokens
                    yield b, at, 0, row
                continue
            step = max(1, self.CHUNK // len(row.lengths))
            for start in range(0, len(row.lengths), step):
                yield b, at, start, self._between(row.at(slice(start, start + step)), row)

    def _between(self, a: Directions, b: Directions) -> Tensor:
        return _raised(distances(a, b), self._power)

    def _rows_of(self, columns: slice | Tensor, start: int, block: Tensor) -> Tensor:
        places = torch.arange(self._valid.shape[-1], device=block.device)[columns]
        return places[start : start + len(block)]


def _raised(result: Tensor, power: float) -> Tensor:
    if power == 1:
        return result
    steps = 2.0 ** _GRID[torch.float32]
    return result.clamp_(min=0).pow_(power).mul_(steps).round_().mul_(1 / steps)


def _pairs(at: slice | Tensor) -> tuple[slice | Tensor, slice | Tensor]:
    return (at, at) if isinstance(at, slice) else (at[:, None], at)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
