"""Outputs of the original functions on inputs given by formulas, in float64.

What the originals return was recorded by running them; the ToDRE row has no original (no code was
published) and is a transcription of the paper's equations.
"""

from __future__ import annotations

import original_dart
import pytest
import torch
from torch import Tensor

from tpcal.plans.selectors import create
from tpcal.plans.selectors._cosine import Distances
from tpcal.plans.selectors.balanced import rebalanced, spatial
from tpcal.plans.selectors.base import Tokens, order_mask
from tpcal.plans.selectors.cdpruner import greedy_map
from tpcal.plans.selectors.dart import image_pivots, text_pivots
from tpcal.plans.selectors.diversity import max_min, max_sum

SYSTEM = 10  # tokens before the image, in the two whole-prompt cases


def features(n: int, d: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)[:, None]
    j = torch.arange(d, dtype=torch.float64)
    return torch.sin(0.7 * (i + 1) * (j + 1)) + 0.5 * torch.cos(1.3 * (i + 2) + 0.2 * j**2)


def wave(a: float, n: int) -> Tensor:
    return 1 + torch.sin(a * (torch.arange(n, dtype=torch.float64) + 1))


def two_heads(n: int) -> Tensor:
    return torch.stack((wave(1.9, n), wave(2.3, n)))


def tokens(h: int, w: int, hidden: Tensor | None = None, **extra: Tensor) -> Tokens:
    n = h * w
    place = torch.arange(n)[None]
    return Tokens(
        layer=3,
        hidden=torch.zeros(1, n, 1, dtype=torch.float64) if hidden is None else hidden[None],
        valid=torch.ones(1, n, dtype=torch.bool),
        index=place,
        image=torch.zeros_like(place),
        n_original=torch.tensor([n]),
        grid_row=place // w,
        grid_col=place % w,
        grid_shape=torch.tensor((h, w)).expand(1, n, 2),
        **{name: value[None] for name, value in extra.items()},
    )


def pairs() -> Distances:
    return Distances(features(64, 16)[None], everything(64))


def everything(n: int) -> Tensor:
    return torch.ones(1, n, dtype=torch.bool)


def count(n: int) -> Tensor:
    return torch.tensor([n])


def kept(name: str, params: dict[str, object], seen: Tokens, n_keep: int) -> list[int]:
    return create(name, params).select(seen, count(n_keep))[0].nonzero()[:, 0].tolist()


MAX_MIN = [8, 15, 10, 54, 59, 11, 52, 30, 49, 44, 7, 0, 4, 38, 46, 60]


def test_btp_mmdp_picks_in_this_order():
    order = max_min(pairs(), everything(64), count(12))
    assert order[0].tolist() == MAX_MIN[:12]


def test_divprune_picks_in_this_order_at_a_quarter():
    order = max_min(pairs(), everything(64), count(round(0.25 * 64)))
    assert order[0].tolist() == MAX_MIN
    seen = tokens(8, 8, features(64, 16))
    assert kept("diversity", {"rule": "max_min"}, seen, 16) == sorted(MAX_MIN)


def test_seeded_btp_mmdp_picks_in_this_order():
    seeds = order_mask(torch.tensor([[0, 5]]), 64)
    order = max_min(pairs(), everything(64), count(6), seeds)
    assert order[0].tolist() == [17, 20, 61, 49, 51, 48]


def test_todre_stage_1_picks_in_this_order():
    picks = [7, 0, 47, 5, 2, 58, 30, 14, 11, 9, 16, 23]
    order = max_sum(pairs(), count(7), everything(64), count(12))
    assert order[0].tolist() == picks
    seen = tokens(8, 8, features(64, 16))
    assert kept("diversity", {"rule": "max_sum", "pivot": 7}, seen, 12) == sorted(picks)


@pytest.mark.parametrize(
    ("n_over", "picks"),
    [
        (24, [16, 13, 0, 30, 27, 19, 3, 10, 24, 29, 6, 46, 49, 43, 33, 63]),
        (59, [16, 13, 0, 30, 27, 19, 3, 10, 24, 29, 6, 22, 26, 7, 2, 5]),
    ],
)
def test_btp_attn_pick_picks_in_this_order(n_over, picks):
    scores = two_heads(64).mean(0)[None]
    order = rebalanced(scores, everything(64), count(16), count(n_over), count(32))
    assert order[0].tolist() == picks


@pytest.mark.parametrize(
    ("h", "w", "n_picks", "first", "total"),
    [
        (24, 24, 144, [0, 575, 23, 299, 552, 36, 186, 149, 288, 425, 438, 564], 33361),
        (6, 6, 9, [0, 35, 5, 20, 30, 9, 2, 7, 12], 120),
        (4, 8, 8, [0, 31, 5, 26, 11, 2, 7, 9], 91),
    ],
)
def test_btp_spatial_init_picks_in_this_order(h, w, n_picks, first, total):
    order = spatial(tokens(h, w), count(n_picks), "manhattan")[0]
    assert order[:12].tolist() == first
    assert int(order.sum()) == total


def test_fastv_keeps_these():
    seen = tokens(8, 8, logits=two_heads(64))
    expected = [0, 3, 10, 13, 16, 19, 27, 30, 33, 43, 46, 49, 52, 57, 60, 63]
    assert kept("attention", {"score": "raw"}, seen, 16) == expected


def test_btp_qwen_stages_keep_these_one_after_the_other():
    weights, states = two_heads(80), features(80, 16)  # one row of weights over the whole prompt
    top = {"boundary": "none", "score": "raw"}
    recipes = [
        (32, {"attention_share": 0.1, "over_selection": 1.2, **top}),
        (16, {"attention_share": 0.4, "over_selection": 1.0, **top}),
        (8, {"attention_share": 1.0, "over_selection": 1.2, "boundary": "count", "score": "raw"}),
    ]
    expected = [
        "10 12 13 14 16 18 20 24 26 28 30 31 34 36 38 42 44 46 48 49 50 52 54 60 62 65 66 67 68 70 72 73",
        "12 13 14 16 18 20 25 27 29 30 31 32 34 35 36 41",
        "10 12 15 17 18 20 24 25",
    ]
    alive = torch.arange(SYSTEM, SYSTEM + 64)
    for (n_keep, params), places in zip(recipes, expected, strict=True):
        seen = tokens(1, len(alive), states[alive], logits=weights[:, alive])
        survivors = kept("balanced", params, seen, n_keep)
        assert [SYSTEM + i for i in survivors] == [int(p) for p in places.split()]
        alive = alive[survivors]


def dart_tokens() -> Tokens:
    states = features(86, 16)
    keys = states * (1 + wave(1.9, 86))[:, None]
    image, text = slice(SYSTEM, SYSTEM + 64), slice(SYSTEM + 64, 86)
    return tokens(
        8,
        8,
        states[image],
        keys=keys[image],
        text_hidden=states[text],
        text_keys=keys[text],
        text_valid=torch.ones(12, dtype=torch.bool),
    )


def test_dart_finds_these_pivots_and_visits_them_in_the_order_of_a_set():
    seen = dart_tokens()
    images, texts = image_pivots(seen, torch.tensor([[4]])), text_pivots(seen, 4)
    places = (images[0, 0] + SYSTEM).tolist() + (texts[0] + SYSTEM + 64).tolist()
    assert places == [56, 36, 43, 69, 82, 76, 79, 85]
    turn = original_dart.set_order(images, texts, seen, SYSTEM)[0, 0].tolist()
    assert [places[i] for i in turn] == [36, 69, 43, 76, 79, 82, 85, 56]


def test_dart_keeps_these():
    expected = "10 14 15 16 17 18 19 20 24 25 26 27 28 29 31 34 36 39 41 43 44 45 47 49 50 52 53 55 56 58 61 64 65 68 69 73"
    n_keep = count(4 + 8 * int(64 * (1 - 0.5) / 8))
    mask = original_dart.select(dart_tokens(), n_keep, SYSTEM)
    survivors = mask[0].nonzero()[:, 0].tolist()
    assert [SYSTEM + i for i in survivors] == [int(p) for p in expected.split()]


def test_cdpruner_picks_in_this_order():
    relevance = wave(0.9, 64)
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min())
    order = greedy_map(pairs(), relevance[None], everything(64), count(10))
    assert order[0].tolist() == [1, 29, 22, 63, 43, 57, 50, 35, 8, 7]
