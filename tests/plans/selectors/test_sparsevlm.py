from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors.sparsevlm import raters

ROOT = 2**0.5  # of D


def told(make_row):
    """Two visual tokens and three words with states made by hand; the third word is filler."""
    return replace(
        make_row([(1, 2)]),
        hidden=torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]),
        text_hidden=torch.tensor([[[4.0, 0.0], [0.0, 1.0], [0.0, 2.0], [99.0, 99.0]]]),
        text_valid=torch.tensor([[True, True, True, False]]),
        text_attention=torch.tensor([[[0.1, 0.4], [0.3, 0.2], [0.6, 0.1], [9.0, 9.0]]]),
    )


def test_raters_are_the_words_with_more_than_their_share_of_the_image(make_row):
    row = told(make_row)
    first = torch.tensor([4 / ROOT, 0.0, 0.0]).softmax(0)
    second = torch.tensor([4 / ROOT, 1 / ROOT, 2 / ROOT]).softmax(0)
    share = (first + second) / 2
    assert (share > share.mean()).tolist() == [True, False, False]
    assert raters(row).tolist() == [[True, False, False, False]]


def test_only_what_the_raters_look_at_counts(make_row):
    row = told(make_row)
    assert create("sparsevlm").score(row)[0].tolist() == pytest.approx([0.1, 0.4])
    alike = replace(row, text_hidden=torch.ones_like(row.text_hidden))
    assert raters(alike).tolist() == [[True, True, True, False]]
    assert create("sparsevlm").score(alike)[0].tolist() == pytest.approx([1 / 3, 0.7 / 3])


def test_without_text_the_first_tokens_stay(make_row):
    row = make_row([(2, 3)], n_text=0)
    mask = create("sparsevlm").select(row, torch.tensor([2]))
    assert mask[0].nonzero()[:, 0].tolist() == [0, 1]
