"""Cosine distances between tokens: as fast as the states allow, whatever company a row has.

A matrix product adds up in an order that depends on its shape, so a selection could depend on what
else is in the batch. Here every row is multiplied alone, over its own tokens, and distances are
rounded to a grid coarser than rounding errors: equal tokens are exactly equal, and sums of
distances are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_GRID = {torch.float64: 40, torch.float32: 18, torch.bfloat16: 16, torch.float16: 16}  # bits
_ALIGNED = 64  # bytes; where torch begins every new tensor on a CPU


@dataclass(frozen=True)
class Directions:
    """Tokens to compare; made by `directions`."""

    states: Tensor
    """[n, D]."""
    lengths: Tensor
    """[n] float32 or float64."""

    def at(self, places: slice | Tensor) -> Directions:
        """Some of them."""
        return Directions(self.states[places], self.lengths[places])


def directions(x: Tensor) -> Directions:
    """The tokens [n, D], ready to be compared.

    Half precision stays as it is on a CPU, which multiplies it many times faster. A GPU may add up
    parts of such a product in half precision, so there it becomes float32. In float16 products
    could overflow: each token is scaled by a power of two, which is exact, to a length below 1.
    """
    if x.dtype in _HALF and x.device.type != "cpu":
        x = x.float()
    if x.data_ptr() % _ALIGNED:  # how a processor adds up may depend on where a row begins
        x = x.clone()
    lengths = torch.linalg.vector_norm(x.to(_wide(x)), dim=-1)
    if x.dtype != torch.float16:
        return Directions(x, lengths)
    scaled, _ = torch.frexp(lengths)
    return Directions(x * (scaled / lengths)[:, None].to(x.dtype), scaled)


def distances(a: Directions, b: Directions) -> Tensor:
    """[n, m] 1 - cosine, float32 (float64 stays) on a grid; 1 where a token has no direction.

    A product of half precision is exact until its result is rounded. A second product finds what
    the rounding lost, and still costs a third of one in float32.
    """
    length = a.lengths[:, None] * b.lengths
    product = a.states @ b.states.mT
    if product.dtype in _HALF:
        excess = torch.addmm(product, a.states, b.states.mT, alpha=-1)
        product = product.to(length.dtype).sub_(excess)
    result = product.div_(length).neg_().add_(1).nan_to_num_(nan=1.0, posinf=1.0, neginf=1.0)
    steps = 2.0 ** _GRID[a.states.dtype]
    return result.mul_(steps).round_().mul_(1 / steps)


def all_distances(a: Directions) -> Tensor:
    """[n, n] distances among the tokens: one half computed, the other mirrored."""
    n_tokens = len(a.lengths)
    result = a.lengths.new_empty(n_tokens, n_tokens)
    step = max(64, -(-n_tokens // 3))  # smaller blocks multiply slower than they save
    for start in range(0, n_tokens, step):
        here, after = slice(start, start + step), slice(start + step, None)
        block = distances(a.at(here), a.at(slice(start, None)))
        result[here, start:] = block
        result[after, here] = block[:, step:].mT
    return result


def real_places(valid: Tensor) -> list[slice | Tensor]:
    """Where the real tokens of each row of ``valid`` [B, N] stand, ascending."""
    counts = valid.sum(-1)
    left = torch.arange(valid.shape[-1], device=valid.device) < counts[:, None]
    known = torch.stack((counts, (left == valid).all(-1).long()), dim=-1).tolist()
    return [
        slice(0, n) if at_left else row.nonzero()[:, 0]
        for (n, at_left), row in zip(known, valid, strict=True)
    ]


class Distances:
    """Cosine distances between the tokens of each row; 0 between a token and filler.

    Of a row of up to ``WHOLE`` tokens all pairs are computed at once, which the first pick of most
    rules needs and a matrix product does fastest; of a longer one only what is asked for.

    Args:
        x: [B, N, D].
        valid: [B, N] bool.
    """

    WHOLE: ClassVar[int] = 4096
    CHUNK: ClassVar[int] = 1 << 22  # pairs looked at in one step beyond it

    def __init__(self, x: Tensor, valid: Tensor) -> None:
        n_tokens = valid.shape[-1]
        self._like = torch.zeros((), dtype=_wide(x), device=x.device)
        self._valid, self._places = valid, real_places(valid)
        self._start = torch.arange(len(valid), device=x.device) * n_tokens
        self._rows: list[Tensor | Directions] = []
        self._table: Tensor | None = None
        if n_tokens <= self.WHOLE:  # then one table serves the whole batch
            self._table = self._like.new_zeros(*valid.shape, n_tokens)
        for b, at in enumerate(self._places):
            row = directions(x[b].detach()[at])
            if self._table is not None:
                self._table[b][_pairs(at)] = all_distances(row)
            else:
                whole = len(row.lengths) <= self.WHOLE
                self._rows.append(all_distances(row) if whole else row)

    def to(self, pick: Tensor) -> Tensor:
        """[B, N] distance of every token to token ``pick`` [B] of its row."""
        if self._table is not None:
            return self._table.view(-1, self._valid.shape[-1]).index_select(0, pick + self._start)
        result = self._like.new_zeros(self._valid.shape)
        local = (self._valid.cumsum(-1) - 1).gather(-1, pick[:, None]).clamp(min=0)
        for b, (at, row) in enumerate(zip(self._places, self._rows, strict=True)):
            if self._valid[b].any():
                if isinstance(row, Directions):
                    row = distances(row.at(local[b]), row)
                else:
                    row = row[local[b]]
                result[b, at] = row[0]
        return result

    def nearest(self, among: Tensor) -> Tensor:
        """[B, N] distance to the nearest other one of ``among`` [B, N] bool; inf without one."""
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

    def _blocks(self) -> Iterator[tuple[int, slice | Tensor, int, Tensor]]:
        """Row, its places that are columns of the block, first place among these, block [c, n]."""
        if self._table is not None:
            yield from ((b, slice(None), 0, table) for b, table in enumerate(self._table))
        for b, (at, row) in enumerate(zip(self._places, self._rows, strict=False)):
            if isinstance(row, Tensor):
                yield b, at, 0, row
                continue
            step = max(1, self.CHUNK // len(row.lengths))
            for start in range(0, len(row.lengths), step):
                yield b, at, start, distances(row.at(slice(start, start + step)), row)

    def _rows_of(self, columns: slice | Tensor, start: int, block: Tensor) -> Tensor:
        places = torch.arange(self._valid.shape[-1], device=block.device)[columns]
        return places[start : start + len(block)]


def _pairs(at: slice | Tensor) -> tuple[slice | Tensor, slice | Tensor]:
    return (at, at) if isinstance(at, slice) else (at[:, None], at)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
