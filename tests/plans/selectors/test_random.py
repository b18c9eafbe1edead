from __future__ import annotations

from dataclasses import replace

import torch

from tpcal.plans.selectors import create


def draw(row, n_keep, **params):
    return create("random", params).select(row, torch.tensor([n_keep]))[0]


def test_seed_and_layer_change_the_draw_and_content_does_not(make_row):
    row = make_row([(12, 12)])
    first = draw(row, 40)
    assert torch.equal(first, draw(make_row([(12, 12)], seed=9), 40))
    assert not torch.equal(first, draw(row, 40, seed=1))
    assert not torch.equal(first, draw(replace(row, layer=3), 40))


def test_fewer_tokens_are_a_subset_of_more(make_row):
    row = make_row([(12, 12)])
    assert not (draw(row, 20) & ~draw(row, 60)).any()


def test_no_two_places_draw_the_same_lot(make_row):
    row = make_row([(150, 150)])
    assert len(create("random").score(row).unique()) == 150 * 150


def test_every_place_is_drawn_about_equally_often(make_row):
    row = make_row([(8, 8)])
    drawn = torch.stack([draw(row, 16, seed=seed) for seed in range(800)]).double()
    frequency = drawn.mean(0)  # expected 0.25, standard error 0.0153
    assert (frequency - 0.25).abs().max() < 4.5 * 0.0153
    together = (drawn.T @ drawn / 800).fill_diagonal_(15 / 63 * 0.25)  # expected 0.0595
    assert (together - 15 / 63 * 0.25).abs().max() < 6 * 0.0084


def test_a_large_seed_is_fine(make_row):
    assert draw(make_row([(4, 4)]), 5, seed=2**63).sum() == 5
