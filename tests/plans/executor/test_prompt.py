"""Prompts read from masks, and tables of their grids, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.prompt import ViewGrid, grid_table, read_prompt

pytestmark = pytest.mark.versions

VISUAL = torch.tensor([[False, False, True, True, True, False, False]])
PADDED = torch.tensor([[0, 1, 1, 1, 1, 1, 1]])


def test_the_example_of_the_module_is_what_is_read():
    read = read_prompt(VISUAL, PADDED)
    assert read.rank.tolist() == [[-1, -1, 0, 1, 2, -1, -1]]
    assert read.real.tolist() == [[False] + [True] * 6]
    assert read.text.tolist() == [[False] * 5 + [True] * 2]
    assert (read.n_visual, read.n_real, read.n_query_text) == ((3,), (6,), 2)
    assert read.last.tolist() == [6]
    assert read.n_behind == (4,)
    assert not read.text_before_visual


def test_an_answer_after_the_prompt_is_not_asked():
    read = read_prompt(VISUAL, PADDED, torch.tensor([5]))
    assert read.last.tolist() == [5]
    assert read.n_behind == (3,)
    assert read.text.tolist() == [[False] * 5 + [True, False]]


def test_a_mask_of_all_tokens_seen_is_read_at_its_end():
    assert read_prompt(VISUAL, torch.cat([PADDED, PADDED], dim=1)).n_real == (6,)


def test_text_between_images_is_seen_by_later_visual_tokens():
    between = torch.tensor([[True, False, True, False]])
    assert read_prompt(between, None).text_before_visual


@pytest.mark.parametrize("length", [4, 0])
def test_a_prompt_with_an_image_that_ends_without_text_is_refused(length):
    with pytest.raises(UsageError, match="must end with a text token"):
        read_prompt(VISUAL, PADDED, torch.tensor([length]))


def test_the_table_has_a_row_for_every_rank():
    grid = ViewGrid(torch.tensor([0, 0, 0]), torch.arange(3), n_rows=1, n_cols=3, n_extra_cols=1)
    both = read_prompt(torch.cat([VISUAL, torch.zeros_like(VISUAL)]), None)
    assert both.n_behind == (4, 0)
    table = grid_table(replace(both, grids=((grid,), ())))
    assert table[0].tolist() == [[0, 0, 0, 1, 3, 1], [0, 0, 1, 1, 3, 1], [0, 0, 2, 1, 3, 0]]
    assert table[1].tolist() == [[-1] * 6] * 3
