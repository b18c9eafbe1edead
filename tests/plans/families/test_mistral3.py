"""Pixtral's tower in three models: images of any size, merged patches, rows with ends."""

from __future__ import annotations

import pytest
import tiny
import torch
from pictures import BREAK, END, IMAGE
from places import cells, forward_grids, generate_grids, outline, reading_order, same
from releases import require_joint_beams

from tpcal.plans.families import find


@pytest.mark.parametrize("name", ["pixtral", "mistral3", "lighton_ocr"])
def test_an_image_has_as_many_cells_as_its_size_holds(name):
    case = tiny.case(name, "sdpa")
    cell = 4 if name == "pixtral" else 8  # pixels
    grids = forward_grids(case.model, case.batch(case.rows))
    assert outline(grids) == [
        [(0, 0, 16 // cell, 24 // cell, 0)],
        [(0, 0, 40 // cell, 16 // cell, 0), (1, 0, 16 // cell, 16 // cell, 0)],
        [],
        [(0, 0, 32 // cell, 32 // cell, 0)],
    ]
    assert cells(grids[0][0]) == reading_order(16 // cell, 24 // cell)
    assert same(generate_grids(case.model, case.batch(case.rows)), grids)
    require_joint_beams()
    beams = generate_grids(case.model, case.batch(case.rows), num_beams=2)
    assert same(beams, tuple(row for row in grids for _ in range(2)))


def test_ends_of_rows_are_text():
    case = tiny.case("mistral3", "sdpa")
    ids = case.rows[0]["input_ids"]
    row = [IMAGE, IMAGE, IMAGE]
    assert ids[0, 4:12].tolist() == [*row, BREAK, *row, END]
    visual = find(case.model).visual_mask(case.model, ids, None)
    assert visual[0, 4:12].tolist() == [True] * 3 + [False] + [True] * 3 + [False]


def test_tokens_stand_where_the_model_merges_patches():
    """Patches of one cell only are lit, and the token that this cell is to be is the largest."""
    case = tiny.case("mistral3", "sdpa")
    merger = case.model.model.multi_modal_projector.patch_merger
    size = torch.tensor([[16, 24]])  # 4 x 6 patches, 2 x 3 cells
    for token, (row, col) in enumerate(reading_order(2, 3)):
        patches = torch.zeros(4, 6, 32)
        patches[2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = 1.0
        with torch.no_grad():
            merged = merger(patches.flatten(0, 1), size)
        assert merged.abs().sum(dim=1).nonzero()[:, 0].tolist() == [token]
