from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.emulated_gpu import EmulatedGpu
from tpcal.plans.selectors import create
from tpcal.plans.selectors.vispruner import Groups, distinct, widths


@pytest.fixture
def fan(make_row):
    """Tokens of falling attention whose states point to these angles."""

    def build(*degrees):
        row = make_row([(len(degrees), 1)], dtype=torch.float64)
        angle = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
        states = torch.stack((angle.cos(), angle.sin()), dim=-1)[None]
        return replace(
            row, hidden=states, vision_scores=-torch.arange(len(degrees))[None].double()
        )

    return build


def kept(row, n_keep, **params):
    mask = create("vispruner", params).select(row, torch.tensor([n_keep]))
    return mask[0].nonzero()[:, 0].tolist()


def test_the_most_alike_of_every_first_token_leaves(fan):
    # 0, 2, 4 against 1, 3, 5: 2 is 5 degrees from 3 and leaves. Then 0, 3, 5 against 1, 4: 0 is 10
    # degrees from 1 and leaves. Then 1, 4 against 3, 5: both are 85 degrees from 3.
    row = fan(0, 10, 90, 95, 180, 270)
    assert kept(row, 5, important_share=0, step=1) == [0, 1, 3, 4, 5]
    assert kept(row, 4, important_share=0, step=1) == [1, 3, 4, 5]
    assert kept(row, 4, important_share=0, step=2) == [1, 3, 4, 5]


def test_of_equals_the_more_attended_stays(fan):
    row = fan(0, 0, 0, 0, 0)
    assert [kept(row, n, important_share=0, step=1) for n in (3, 2, 1)] == [
        [0, 1, 3],  # of 0, 2, 4 the last leaves, and of 0, 2 against 1, 3 again
        [0, 1],
        [1],
    ]


def test_important_tokens_stay_and_are_not_compared(fan):
    assert kept(fan(0, 10, 90, 95, 180, 270), 4) == [0, 1, 3, 5]  # of 2, 4 against 3, 5: 2, then 4
    assert kept(fan(0, 0, 0, 10, 20), 3, important_share=1) == [0, 1, 2]


def test_by_default_half_is_picked_by_attention(make_row):
    row = make_row([(12, 3)])
    for n_keep in (7, 20, 33):
        top = row.vision_scores[0].topk(n_keep // 2).indices.tolist()
        assert set(top) <= set(kept(row, n_keep))


def test_tokens_without_patches_leave_first(make_row):
    row = make_row([(5, 5)])  # the last column is newlines
    assert not any(place % 5 == 4 for place in kept(row, 20))
    assert sum(place % 5 == 4 for place in kept(row, 22)) == 2


def test_repeats_leave_before_anything_else(make_row):
    row = make_row([(6, 3)], dtype=torch.float64)
    states = row.hidden.clone()
    states[0, 9:] = states[0, :9]  # nine tokens, each twice, on different sides of the first split
    row = replace(row, hidden=states, vision_scores=-torch.arange(18)[None].double())
    assert sorted(place % 9 for place in kept(row, 9, important_share=0, step=1)) == list(range(9))


def rounds(far, n_keep, step):
    """The tokens that remain of one group, by the rule as it is written."""
    left = list(range(len(far)))
    while len(left) > n_keep:
        first, second = left[::2], left[1::2]
        near = {a: min((float(far[a, b]) for b in second), default=9.0) for a in first}
        n_out = min(len(left) - n_keep, len(first), step)
        gone = sorted(first, key=lambda a: (near[a], -a))[:n_out]
        left = [token for token in left if token not in gone]
    return left


def test_groups_of_any_size_are_thinned_together():
    sizes = [(37, 5, 3), (1, 0, 4), (22, 22, 1), (0, 0, 2), (30, 0, 9), (36, 1, 50)]
    g = torch.Generator().manual_seed(0)
    far = torch.randint(-3, 4, (len(sizes), 37, 37), generator=g) / 3.0  # many are equal
    far[far == 0] *= -1  # both zeros are equal too
    stays = distinct(far, Groups(*torch.tensor(sizes).T), widths(sizes))
    for row, table, (n, k, step) in zip(stays, far, sizes, strict=True):
        assert row.nonzero()[:, 0].tolist() == rounds(table[:n, :n], k, step)


def test_a_round_is_few_kernels():
    sizes, n_launches = [(60, 20, 4)], []
    for n_rounds in (4, 8):
        with EmulatedGpu() as gpu:
            groups = Groups(*map(gpu.put, torch.tensor(sizes).T))
            distinct(gpu.put(torch.rand(1, 60, 60)), groups, widths(sizes)[:n_rounds])
        n_launches.append(gpu.launches.total())
    assert n_launches[1] - n_launches[0] <= 4 * 10
