from __future__ import annotations

import pytest
import torch

from tpcal.plans.selectors.base import image_quotas, order_mask, ranks, top_mask

NAN, INF = float("nan"), float("inf")


def mask_of(scores, n_keep, valid=None):
    scores = torch.tensor([scores])
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else torch.tensor([valid])
    return top_mask(scores, valid, torch.tensor([n_keep]))[0].long().tolist()


def test_ties_go_to_the_lowest_index():
    assert mask_of([1.0, 2.0, 2.0, 2.0], 2) == [0, 1, 1, 0]
    assert mask_of([0.0, -0.0, 0.0, -0.0], 2) == [1, 1, 0, 0]
    assert mask_of([3, 5, 5, 1], 1) == [0, 1, 0, 0]


def test_nan_comes_last_but_before_filler():
    assert mask_of([NAN, 1.0, -INF, NAN], 2) == [1, 1, 0, 0]
    assert mask_of([9.0, NAN, 1.0], 2, [False, True, True]) == [0, 1, 1]


def test_ranks_count_within_groups():
    scores = torch.tensor([[1.0, 5.0, 3.0, 3.0, 9.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    group = torch.tensor([[0, 1, 1, 0, 1]])
    assert ranks(scores, valid, group)[0, :4].tolist() == [1, 0, 1, 0]
    assert ranks(scores, valid)[0, :4].tolist() == [3, 0, 1, 2]


def test_no_pick_marks_nothing():
    assert order_mask(torch.tensor([[2, -1], [-1, -1]]), 3).long().tolist() == [
        [0, 0, 1],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("counts", "n_keep", "quotas"),
    [
        ((8, 4), 6, [4, 2]),
        ((8, 4), 12, [8, 4]),
        ((8, 4), 99, [8, 4]),
        ((8, 4), 0, [0, 0]),
        ((5, 5), 1, [1, 0]),
        ((100, 1, 1), 3, [1, 1, 1]),
        ((100, 1, 1), 2, [2, 0, 0]),
        ((100, 1, 1), 10, [8, 1, 1]),
        ((3, 0, 3), 3, [2, 0, 1]),
    ],
)
def test_images_share_in_proportion_and_none_is_forgotten(counts, n_keep, quotas):
    image = torch.tensor([[i for i, n in enumerate(counts) for _ in range(n)]])
    found = image_quotas(image, torch.ones_like(image).bool(), torch.tensor([n_keep]))
    assert found[0].tolist() == quotas


def test_quotas_always_add_up_and_fit():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        image = torch.randint(0, 6, (1, 40), generator=generator).sort().values
        counts = torch.bincount(image[0], minlength=6)[: int(image.max()) + 1]
        for n_keep in range(41):
            quota = image_quotas(image, torch.ones_like(image).bool(), torch.tensor([n_keep]))[0]
            assert int(quota.sum()) == n_keep
            assert (quota <= counts).all()
