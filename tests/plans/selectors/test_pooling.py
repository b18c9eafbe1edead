from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors.pooling import cells


@pytest.fixture
def sheet(make_row):
    """One image of which every token covers pixels."""

    def build(n_rows, n_cols, **options):
        row = make_row([(n_rows, n_cols)], **options)
        return replace(row, covers=None)

    return build


def pooled(row, n_keep):
    """Mask of the tokens that stay, and their states."""
    selector = create("pooling")
    stays = selector.select(row, torch.tensor([n_keep]))
    return stays, selector.merged(row, stays)


def test_a_quarter_of_a_square_is_the_means_of_its_2_by_2_squares(sheet):
    row = sheet(4, 4)
    stays, states = pooled(row, 4)
    assert stays[0].nonzero()[:, 0].tolist() == [0, 2, 8, 10]  # all are as near to the centre
    squares = row.hidden[0].view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(states[stays], squares)


def test_the_token_at_the_centre_stays(sheet):
    stays, states = pooled(sheet(3, 3), 1)
    assert stays[0].nonzero()[:, 0].tolist() == [4]
    torch.testing.assert_close(states[0, 4], sheet(3, 3).hidden[0].mean(0))


@pytest.mark.parametrize(("n_rows", "n_cols", "side"), [(24, 24, 2), (24, 24, 3), (12, 18, 3)])
def test_where_squares_go_in_evenly_cells_are_squares(n_rows, n_cols, side, sheet):
    row = sheet(n_rows, n_cols)
    cell = cells(row, torch.tensor([[n_rows * n_cols // side**2]]))[0].view(n_rows, n_cols)
    n_wide = n_cols // side
    i, j = torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij")
    assert torch.equal(cell, i // side * n_wide + j // side)


@pytest.mark.parametrize(("n_rows", "n_cols"), [(7, 7), (3, 11), (12, 5), (1, 9)])
def test_every_count_is_met_with_cells_as_even_as_they_can_be(n_rows, n_cols, sheet):
    row = sheet(n_rows, n_cols)
    for n_keep in range(1, n_rows * n_cols + 1):
        cell = cells(row, torch.tensor([[n_keep]]))[0]
        sizes = cell.bincount()
        assert len(sizes) == n_keep
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 2
        assert pooled(row, n_keep)[0].sum() == n_keep


@pytest.mark.parametrize("n_keep", [64, 100, 128, 192])
def test_cells_are_about_as_high_as_wide(n_keep, sheet):
    row = sheet(24, 24)
    cell = cells(row, torch.tensor([[n_keep]]))[0]
    for number in range(n_keep):
        for axis in (row.grid_row[0], row.grid_col[0]):
            inside = axis[cell == number]
            assert inside.max() - inside.min() <= (576 / n_keep) ** 0.5 + 1


def test_survivors_of_a_cut_are_pooled_to_the_count(sheet):
    row = sheet(9, 9, dtype=torch.float64)
    at = torch.randperm(81, generator=torch.Generator().manual_seed(0))[:30].sort().values
    names = ("hidden", "valid", "index", "image", "grid_row", "grid_col", "grid_shape")
    few = replace(row, **{name: getattr(row, name)[:, at] for name in names})
    for n_keep in range(1, 31):
        stays, states = pooled(few, n_keep)
        assert stays.sum() == n_keep
        cell = cells(few, torch.tensor([[n_keep]]))[0]
        for place in stays[0].nonzero()[:, 0].tolist():
            torch.testing.assert_close(
                states[0, place], few.hidden[0, cell == cell[place]].mean(0)
            )


def test_newlines_leave_first_and_stay_as_they_are(make_row):
    row = make_row([(4, 5)])  # four columns of pixels and one of newlines
    stays, states = pooled(row, 4)
    assert stays[0].view(4, 5).nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    squares = row.hidden[0].view(4, 5, -1)[:, :4].reshape(2, 2, 2, 2, -1).mean((1, 3))
    torch.testing.assert_close(states[stays], squares.flatten(0, 1))
    stays, states = pooled(row, 18)
    assert stays[0].view(4, 5)[:, 4].tolist() == [True, True, False, False]
    assert torch.equal(states[stays], row.hidden[stays])


def test_images_share_in_proportion_and_do_not_mix(make_row):
    row = make_row([(4, 2), (2, 2), (8, 3)])
    states = (row.image[..., None] + 1.0).expand_as(row.hidden)
    stays, made = pooled(replace(row, hidden=states), 18)
    assert [int(stays[row.image == i].sum()) for i in range(3)] == [4, 2, 12]
    torch.testing.assert_close(made[stays], states[stays])
