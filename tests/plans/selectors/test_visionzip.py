from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors.base import Tokens

SCORES = [0.9, 0.1, 0.8, 0.1, 0.1, 0.1, 0.1, 0.1]
KEYS = [[5, 5], [1, 0], [5, 5], [1, 0.1], [0.1, 1], [0, 1], [1, 1], [0, 2]]


def line(scores=SCORES, keys=KEYS) -> Tokens:
    """Eight tokens side by side whose states are 0, 10, 20, …"""
    n = len(scores)
    place = torch.arange(n)[None]
    return Tokens(
        layer=0,
        hidden=10.0 * place[..., None],
        valid=torch.ones(1, n, dtype=torch.bool),
        index=place,
        image=torch.zeros_like(place),
        n_original=torch.tensor([n]),
        grid_row=torch.zeros_like(place),
        grid_col=place,
        grid_shape=torch.tensor((1, n)).expand(1, n, 2),
        vision_scores=torch.tensor([scores]),
        vision_keys=torch.tensor([keys]),
    )


def kept(tokens, n_keep, share=0.5):
    """Places of the tokens that stay, and their states."""
    selector = create("visionzip", {"contextual_share": share})
    stays = selector.select(tokens, torch.tensor([n_keep]))
    states = selector.merged(tokens, stays)
    return stays[0].nonzero()[:, 0].tolist(), states[stays].flatten().tolist()


def test_the_rest_goes_into_evenly_spread_tokens_of_the_most_alike_keys():
    # 0 and 2 are attended most. Of 1, 3, 4, 5, 6, 7 the first and the fourth are contextual: 1
    # takes in 3, and 6, which is as near to 5 (the lowest index wins); 5 takes in 4 and 7.
    places, states = kept(line(), 4)
    assert places == [0, 1, 2, 5]
    assert states == pytest.approx([0, (10 + 30 + 60) / 3, 20, (50 + 40 + 70) / 3])


def test_without_contextual_tokens_nothing_is_merged():
    assert kept(line(), 4, share=0.0) == ([0, 1, 2, 3], [0, 10, 20, 30])


def test_all_may_be_contextual():
    places, states = kept(line(), 2, share=1.0)
    assert places == [0, 4]  # at steps of four
    into_first, into_fifth = [0, 1, 2, 3, 6], [4, 5, 7]  # cosines to (5, 5) and to (0.1, 1)
    assert states == pytest.approx([sum(p) * 10 / len(p) for p in (into_first, into_fifth)])


def test_contextual_tokens_stand_at_steps_for_any_count():
    for n in range(1, 9):
        places, _ = kept(line(), n, share=1.0)
        assert places == sorted({-(-8 * i // n) for i in range(n)})


def test_the_default_share_is_the_papers(make_row):
    row = make_row([(12, 3)])
    for n_keep, n_contextual in ((32, 5), (13, 2), (6, 0)):
        stays = create("visionzip").select(row, torch.tensor([n_keep]))
        top = row.vision_scores[0].topk(n_keep - n_contextual).indices
        assert stays[0, top].all()
        assert stays.sum() == n_keep


def test_tokens_without_patches_leave_first_and_mix_with_none():
    scores = [*SCORES[:3], -torch.inf, *SCORES[4:7], -torch.inf]
    keys = [k if s > -1 else [0, 0] for s, k in zip(scores, KEYS, strict=True)]
    places, states = kept(line(scores, keys), 4)
    assert places == [0, 1, 2, 5]  # of 1, 4, 5, 6 the first and the third
    assert states == pytest.approx([0, (10 + 60) / 2, 20, (50 + 40) / 2])
    assert kept(line(scores, keys), 6)[0] == [0, 1, 2, 4, 5, 6]
    assert kept(line(scores, keys), 7)[0] == [0, 1, 2, 3, 4, 5, 6]


def test_images_do_not_mix(make_row):
    row = make_row([(3, 3), (6, 3)])
    states = torch.where(row.image[..., None] == 0, 1.0, 5.0).expand_as(row.hidden)
    selector, row = create("visionzip", {"contextual_share": 0.5}), replace(row, hidden=states)
    stays = selector.select(row, torch.tensor([9]))
    assert [int(stays[row.image == i].sum()) for i in (0, 1)] == [3, 6]
    assert torch.equal(selector.merged(row, stays)[stays], states[stays])
