"""Where the visual tokens of prompts stand, in a forward pass and inside generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import ViewGrid
from tpcal.plans.plan_records import Cut, Plan

HALF = Plan((Cut(3, 0.5, "random"),))
Grids = tuple[tuple[ViewGrid, ...], ...]


@torch.no_grad()
def forward_grids(model: Any, inputs: Mapping[str, Any]) -> Grids:
    """The views of each row, as a forward pass under a plan finds them."""
    with apply(model, HALF) as handle:
        model(**inputs)
    assert handle.last is not None
    return handle.last.grids


def generate_grids(model: Any, inputs: Mapping[str, Any], **options: Any) -> Grids:
    """The same inside generate, which encodes images beforehand."""
    options = {"max_new_tokens": 2, "do_sample": False, **options}
    with apply(model, HALF) as handle:
        model.generate(**inputs, **options)
    assert handle.last is not None
    return handle.last.grids


def cells(grid: ViewGrid) -> list[tuple[int, int]]:
    """Row and column of every token of a view."""
    return list(zip(grid.row.tolist(), grid.col.tolist(), strict=True))


def reading_order(n_rows: int, n_cols: int) -> list[tuple[int, int]]:
    """The cells of a view without extra tokens."""
    return [(row, col) for row in range(n_rows) for col in range(n_cols)]


def outline(grids: Grids) -> list[list[tuple[int, int, int, int, int]]]:
    """Image, time, rows, columns and extra columns of each view."""
    return [[(g.image, g.time, g.n_rows, g.n_cols, g.n_extra_cols) for g in row] for row in grids]


def same(one: Grids, two: Grids) -> bool:
    """Whether all tokens stand at the same places."""
    return outline(one) == outline(two) and all(
        cells(a) == cells(b) and a.region == b.region
        for x, y in zip(one, two, strict=True)
        for a, b in zip(x, y, strict=True)
    )
