from __future__ import annotations

import pytest
import torch

from tpcal.plans.selectors import create
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.balanced import admit, spatial
from tpcal.plans.selectors.diversity import max_min

LLAVA = [
    {"attention_share": 0.3, "over_selection": 3.7, "diversity_share": 0.3, "spatial_share": 0.5},
    {"attention_share": 0.9, "over_selection": 1.5, "diversity_share": 0.1},
    {"attention_share": 1.0, "over_selection": 1.2},
]


def kept(row, n_keep, **params):
    return create("balanced", params).select(row, torch.tensor([n_keep]))[0]


def attn_pick(scores, k, n_over, boundary):
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n_over]
    left = [i for i in best if i < boundary]
    return (left + [i for i in best if i >= boundary])[:k]


@pytest.mark.parametrize(
    ("n_keep", "n_fresh", "n_attention", "n_over", "n_spatial", "params"),
    [
        (288, 86, 86, 318, 144, LLAVA[0]),
        (144, 14, 129, 193, 0, LLAVA[1]),
        (48, 0, 48, 57, 0, LLAVA[2]),
    ],
)
def test_released_llava_stages_are_these_unions_filled_up(
    n_keep, n_fresh, n_attention, n_over, n_spatial, params, make_row
):
    row = make_row([(24, 24)], dtype=torch.float64)
    distances = Distances(row.hidden, row.valid)
    scores = row.logits.mean(1)[0].tolist()
    union = set(max_min(distances, row.valid, torch.tensor([n_fresh]))[0].tolist())
    union |= set(attn_pick(scores, n_attention, n_over, n_keep))
    union |= set(spatial(row, torch.tensor([n_spatial]), "manhattan")[0].tolist())
    seeds = torch.zeros(1, 576, dtype=torch.bool)
    seeds[0, list(union)] = True
    fill = max_min(distances, row.valid, torch.tensor([n_keep - len(union)]), seeds)[0].tolist()
    mask = kept(row, n_keep, boundary="count", score="raw", **params)
    assert mask.nonzero()[:, 0].tolist() == sorted(union | set(fill))


def test_half_and_count_are_the_same_boundary_at_half_the_tokens(make_row):
    row = make_row([(10, 10)])
    assert torch.equal(kept(row, 50, boundary="half"), kept(row, 50, boundary="count"))
    assert not torch.equal(kept(row, 20, boundary="half"), kept(row, 20, boundary="count"))


def test_full_share_without_over_selection_is_the_attention_selector(make_row):
    row = make_row([(10, 10)])
    plain = create("attention").select(row, torch.tensor([30]))[0]
    assert torch.equal(kept(row, 30, attention_share=1.0, over_selection=1.0), plain)


def test_no_share_at_all_is_max_min_diversity(make_row):
    row = make_row([(10, 10)])
    plain = create("diversity").select(row, torch.tensor([30]))[0]
    assert torch.equal(kept(row, 30, attention_share=0.0), plain)


def test_rebalancing_moves_attention_to_the_first_half(make_row):
    row = make_row([(10, 10)])
    wide = kept(row, 30, attention_share=1.0, over_selection=3.0)[:50].sum()
    narrow = kept(row, 30, attention_share=1.0, over_selection=1.0)[:50].sum()
    assert wide == 30 > narrow


def test_picks_of_a_full_row_are_left_out_in_their_order():
    chosen = torch.tensor([[True, False, False, False], [False] * 4])
    order = torch.tensor([[0, 3, 1], [2, -1, -1]])
    mask = admit(chosen, order, torch.tensor([2, 3]))
    assert mask.long().tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]


def test_the_spatial_start_sees_every_image_before_any_twice(make_row):
    row = make_row([(4, 4), (2, 2), (3, 3)])
    order = spatial(row, torch.tensor([3]), "manhattan")[0]
    assert order.tolist() == [0, 16, 20]


def test_manhattan_and_euclidean_spread_differently(make_row):
    row = make_row([(12, 12)])
    first, second = (
        spatial(row, torch.tensor([30]), d)[0].tolist() for d in ("manhattan", "euclidean")
    )
    assert first[:4] == [0, 143, 11, 77]
    assert first != second
