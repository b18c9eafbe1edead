from __future__ import annotations

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors.grid import hilbert


def kept(row, n_keep):
    return create("grid").select(row, torch.tensor([n_keep]))[0]


@pytest.mark.parametrize("side", [8, 256])
def test_the_curve_visits_every_cell_and_only_steps_to_neighbours(side):
    cell = torch.arange(side**2)
    place = hilbert(cell // side, cell % side)
    assert torch.equal(place.sort().values, cell)
    walk = place.argsort()
    steps = (walk // side).diff().abs() + (walk % side).diff().abs()
    assert (steps == 1).all()


def test_a_quarter_takes_one_token_of_every_2_by_2_square(make_row):
    squares = kept(make_row([(24, 24)]), 144).view(12, 2, 12, 2).sum((1, 3))
    assert (squares == 1).all()


@pytest.mark.parametrize("n_keep", [16, 40, 64, 100, 128, 200])
def test_every_part_of_the_image_gets_its_share(n_keep, make_row):
    parts = kept(make_row([(24, 24)]), n_keep).view(3, 8, 3, 8).sum((1, 3))
    assert (parts - n_keep / 9).abs().max() < 1.5


def test_images_share_in_proportion(make_row):
    row = make_row([(8, 8), (4, 4), (8, 8)])
    mask = kept(row, 36)
    assert [int(mask[row.image[0] == i].sum()) for i in range(3)] == [16, 4, 16]


def test_content_does_not_matter(make_row):
    assert torch.equal(kept(make_row([(7, 9)]), 20), kept(make_row([(7, 9)], seed=4), 20))
