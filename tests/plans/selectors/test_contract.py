"""Laws every selector keeps, for every name in the registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tpcal.plans.selectors import create, names, needs
from tpcal.plans.selectors.base import Tokens, checked

VARIANTS = [
    *((name, {}) for name in names()),
    ("attention", {"score": "raw"}),
    ("diversity", {"rule": "max_sum"}),
    ("diversity", {"rule": "max_sum", "pivot": "centre"}),
    ("diversity", {"rule": "max_sum", "pivot": "norm"}),
    ("diversity", {"rule": "max_sum", "pivot": "first"}),
    ("diversity", {"rule": "max_sum", "pivot": 5}),
    ("balanced", {"attention_share": 0.0}),
    ("balanced", {"attention_share": 1.0, "over_selection": 1.2, "boundary": "count"}),
    ("balanced", {"attention_share": 0.1, "over_selection": 1.2, "boundary": "none"}),
    ("balanced", {"attention_share": 0.6, "spatial_share": 0.6, "diversity_share": 0.6}),
    ("balanced", {"attention_share": 0.0, "spatial_share": 0.5, "distance": "euclidean"}),
    ("visionzip", {"contextual_share": 0.6}),
    ("vispruner", {"important_share": 0.0, "step": 3}),
    ("cdpruner", {"relevance": "negative"}),
    ("coverage", {"attention_power": 0.7, "distance_power": 1}),
    ("coverage", {"attention_power": 0.5, "attended": "picks"}),
    ("dart", {"image_pivots": 1, "text_pivots": 0}),
]
NAMED = pytest.mark.parametrize(
    ("name", "params"), VARIANTS, ids=[f"{n}{i}" for i, (n, _) in enumerate(VARIANTS)]
)
IMAGES = [[(4, 4)], [(3, 5), (2, 2)], [(1, 1)], [], [(2, 7), (1, 1), (5, 3), (1, 2)], [(6, 6)]]


@pytest.fixture
def rows(make_row):
    return [make_row(images, seed) for seed, images in enumerate(IMAGES)]


def chosen(name, params, tokens, n_keep):
    return create(name, params).select(tokens, torch.as_tensor(n_keep))


@NAMED
@pytest.mark.parametrize("n_keep", [0, 1, 5, 15, 500])
def test_every_row_keeps_exactly_its_count_and_never_filler(name, params, n_keep, rows, stack):
    tokens = stack(rows, garbage=float("nan"), extra=2)
    mask = chosen(name, params, tokens, [n_keep] * len(rows))
    assert mask.dtype == torch.bool
    assert mask.shape == tokens.valid.shape
    assert mask.sum(-1).tolist() == tokens.valid.sum(-1).clamp(max=n_keep).tolist()
    assert not (mask & ~tokens.valid).any()
    asked = tokens.valid.sum(-1).clamp(max=n_keep)
    assert checked(mask, tokens, asked, name) is mask  # what the executor asks of every choice


@NAMED
def test_every_row_may_have_a_count_of_its_own(name, params, rows, stack):
    mask = chosen(name, params, stack(rows), [0, 3, 1, 4, 30, 35])
    assert mask.sum(-1).tolist() == [0, 3, 1, 0, 30, 35]


@NAMED
def test_places_are_read_only_by_selectors_that_say_so(name, params, rows, stack):
    tokens = stack(rows)
    scrambled = replace(
        tokens,
        grid_row=tokens.grid_col * 3 % 4,
        grid_col=-tokens.grid_row,
        grid_shape=-tokens.grid_shape,
    )
    masks = [chosen(name, params, each, [5] * len(rows)) for each in (tokens, scrambled)]
    assert create(name, params).reads_grid or torch.equal(*masks)


@NAMED
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.nightly)],
)
@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_rows_do_not_see_each_other(name, params, dtype, spread, make_row, stack):
    rows = [
        make_row(images, seed, dtype=dtype, n_text=seed + 1, spread=spread)
        for seed, images in enumerate([*IMAGES, [(12, 12)]])
    ]
    n_keep = [7, 11, 1, 2, 17, 13, 61]
    apart = [chosen(name, params, row, [n])[0] for row, n in zip(rows, n_keep, strict=True)]
    for garbage, extra in ((7.0, 0), (-1e4, 9), (float("inf"), 1)):
        together = chosen(name, params, stack(rows, garbage, extra), n_keep)
        for mask, alone in zip(together, apart, strict=True):
            assert torch.equal(mask[: len(alone)], alone)


@NAMED
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(torch.float32, marks=pytest.mark.nightly),
        pytest.param(torch.float16, marks=pytest.mark.nightly),
    ],
)
def test_many_wide_near_duplicates_are_chosen_as_in_the_row_alone(
    name, params, dtype, make_row, stack
):
    shapes = [[(20, 20)], [(24, 24)], [(7, 9), (3, 3)]]
    rows = [
        make_row(images, seed, dtype=dtype, n_text=9 + 8 * seed, spread=0.01, width=1024)
        for seed, images in enumerate(shapes)
    ]
    n_keep = [88, 127, 30]
    apart = [chosen(name, params, row, [n])[0] for row, n in zip(rows, n_keep, strict=True)]
    for extra, of_rows in ((0, (0, 1, 2)), (5, (2, 0)), (64, (1, 1, 0, 2, 2))):
        seen = stack([rows[i] for i in of_rows], 7.0, extra)
        together = chosen(name, params, seen, [n_keep[i] for i in of_rows])
        for i, mask in zip(of_rows, together, strict=True):
            assert torch.equal(mask[: len(apart[i])], apart[i])


@NAMED
def test_a_model_that_trains_can_be_pruned(name, params, make_row, stack):
    seen = stack([make_row([(4, 4)], dtype=torch.float32), make_row([(3, 3)])])
    live = ("hidden", "keys", "logits", "lse", "text_hidden", "text_keys", "text_attention")
    trained = {f: getattr(seen, f).clone().requires_grad_() for f in live}
    mask = chosen(name, params, replace(seen, **trained), [5, 4])
    assert torch.equal(mask, chosen(name, params, seen, [5, 4]))


@NAMED
@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_where_the_filler_stands_does_not_matter(name, params, spread, make_row, scatter):
    row = make_row([(5, 5), (2, 3)], seed=3, dtype=torch.bfloat16, spread=spread)
    at = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:31].sort().values
    mask = chosen(name, params, scatter(row, at, 50), [12])[0]
    assert torch.equal(mask[at], chosen(name, params, row, [12])[0])


@NAMED
def test_the_same_tokens_give_the_same_choice(name, params, rows, stack):
    tokens = stack(rows)
    first, second = (chosen(name, params, tokens, [6] * len(rows)) for _ in range(2))
    assert torch.equal(first, second)


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_near_duplicates_in_half_precision_are_still_distinct_tokens(
    name, params, dtype, make_row
):
    row = make_row([(12, 12)], dtype=dtype, spread=0.0)
    assert chosen(name, params, row, [128]).sum() == 128


@NAMED
def test_tokens_that_are_all_equal_are_still_distinct(name, params, make_row):
    row = make_row([(8, 8)])
    same = replace(
        row,
        hidden=torch.ones_like(row.hidden),
        keys=torch.ones_like(row.keys),
        vision_scores=torch.ones_like(row.vision_scores),
        vision_keys=torch.ones_like(row.vision_keys),
        logits=torch.zeros_like(row.logits),
        text_attention=torch.zeros_like(row.text_attention),
    )
    assert chosen(name, params, same, [40]).sum() == 40


@NAMED
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_numbers_gone_wrong_do_not_change_the_count(name, params, value, make_row):
    row = make_row([(6, 6)])
    broken = {f: getattr(row, f).clone() for f in ("hidden", "keys", "logits", "vision_keys")}
    broken["vision_scores"] = row.vision_scores.clone()
    broken["text_attention"] = row.text_attention.clone()
    for tensor in broken.values():
        tensor[..., 3:9] = value
    assert chosen(name, params, replace(row, **broken), [20]).sum() == 20


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_chooses_as_float32_of_the_same_values(name, params, dtype, make_row):
    row = replace(make_row([(7, 9)], dtype=dtype, spread=0.3, width=64), final_norm=None)
    fields = {key: value for key, value in vars(row).items() if isinstance(value, torch.Tensor)}
    wide = {key: value.float() for key, value in fields.items() if value.dtype == dtype}
    assert torch.equal(
        chosen(name, params, row, [20]), chosen(name, params, replace(row, **wide), [20])
    )


@NAMED
def test_keeping_all_is_the_identity(name, params, rows, stack):
    tokens = stack(rows)
    assert torch.equal(chosen(name, params, tokens, tokens.n_original), tokens.valid)


@NAMED
def test_an_empty_batch_of_candidates_gives_an_empty_mask(name, params, make_row):
    assert chosen(name, params, make_row([]), [3]).shape == (1, 0)


@NAMED
def test_a_prompt_without_text_behind_the_image_is_fine(name, params, make_row):
    assert chosen(name, params, make_row([(4, 4)], n_text=0), [9]).sum() == 9


@NAMED
def test_a_selector_gets_by_with_what_it_says_it_needs(name, params, make_row):
    row, wanted = make_row([(4, 4), (2, 2)]), needs(name, params)
    fields = {
        "scores": ("logits", "lse"),
        "keys": ("keys", "text_keys"),
        "text": ("text_hidden", "text_valid", "text_keys"),
        "text_scores": ("text_attention",),
        "norm": ("final_norm",),
        "vision": ("vision_scores", "vision_keys"),
    }
    assert wanted <= fields.keys()
    unasked = {f: None for need, fs in fields.items() if need not in wanted for f in fs}
    spare = replace(row, **unasked)
    assert torch.equal(chosen(name, params, spare, [9]), chosen(name, params, row, [9]))


@NAMED
def test_before_the_decoder_it_works_without_keys_or_says_that_it_cannot(name, params, make_row):
    selector = create(name, params)
    assert selector.min_layer == int(bool(selector.needs & {"scores", "text_scores"}))
    if selector.min_layer == 0:
        row = make_row([(4, 4)])
        start = replace(row, layer=0, keys=None, text_keys=None, logits=None, lse=None)
        assert selector.select(start, torch.tensor([5])).sum() == 5


@NAMED
def test_survivors_of_a_cut_can_be_cut_again(name, params, rows, stack):
    tokens = stack(rows)
    first = chosen(name, params, tokens, [12] * len(rows))
    second = chosen(name, params, survivors(tokens, first), [5] * len(rows))
    assert second.sum(-1).tolist() == tokens.valid.sum(-1).clamp(max=5).tolist()


def survivors(tokens: Tokens, mask: torch.Tensor) -> Tokens:
    """The kept tokens of each row moved to the left."""
    width = int(mask.sum(-1).max())
    order = (~mask).long().argsort(dim=-1, stable=True)[:, :width]

    def moved(x: torch.Tensor) -> torch.Tensor:
        index = order.view(*order.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        return x.gather(1, index)

    per_token = ("hidden", "index", "image", "grid_row", "grid_col", "grid_shape", "keys")
    per_token += ("vision_scores", "vision_keys", "covers")
    new = {name: moved(getattr(tokens, name)) for name in per_token}
    for name in ("logits", "text_attention"):
        new[name] = moved(getattr(tokens, name).mT).mT
    return replace(tokens, **new, valid=mask.gather(1, order))


MERGING = [(name, params) for name, params in VARIANTS if name in ("visionzip", "pooling")]
MERGES = pytest.mark.parametrize(("name", "params"), MERGING)


def test_every_other_selector_leaves_the_states_alone(rows, stack):
    tokens = stack(rows)
    for name in {name for name, _ in VARIANTS} - {name for name, _ in MERGING}:
        assert create(name).merged(tokens, tokens.valid) is None


def merged(name, params, tokens, n_keep):
    """States, and which tokens stay."""
    selector = create(name, params)
    stays = selector.select(tokens, torch.as_tensor(n_keep))
    return selector.merged(tokens, stays), stays


@MERGES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_merged_states_are_those_of_the_row_alone(name, params, dtype, make_row, stack):
    rows = [
        make_row(images, seed, dtype=dtype, n_text=seed + 1) for seed, images in enumerate(IMAGES)
    ]
    n_keep = [7, 11, 1, 2, 17, 13]
    for garbage, extra in ((7.0, 0), (float("nan"), 9), (float("inf"), 1)):
        states, stays = merged(name, params, stack(rows, garbage, extra), n_keep)
        assert states.dtype == dtype
        for i, (row, n) in enumerate(zip(rows, n_keep, strict=True)):
            if row.valid.any():
                alone, chosen_alone = merged(name, params, row, [n])
                assert torch.equal(states[i][stays[i]], alone[chosen_alone])
    assert any((states - stack(rows, 0.0, extra).hidden)[stays].abs().amax(-1) > 0.1)


@MERGES
def test_where_nothing_leaves_no_state_changes_a_bit(name, params, rows, stack):
    tokens = stack(rows)
    states, _ = merged(name, params, tokens, tokens.n_original)
    assert torch.equal(states[tokens.valid], tokens.hidden[tokens.valid])
    nothing, _ = merged(name, params, tokens, [0] * len(rows))
    assert nothing is None


@MERGES
def test_merged_states_lie_among_those_they_are_made_of(name, params, rows, stack):
    tokens = stack(rows)
    states, stays = merged(name, params, tokens, [5] * len(rows))
    for row, kept, valid, made in zip(tokens.hidden, stays, tokens.valid, states, strict=True):
        if valid.any():
            assert (made[kept] <= row[valid].amax(0) + 1e-6).all()
            assert (made[kept] >= row[valid].amin(0) - 1e-6).all()
