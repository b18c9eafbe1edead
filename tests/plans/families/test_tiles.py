"""Families that see tiles: where the tiles lie in the image, and the order of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import tiles
import torch
from releases import require_joint_beams, require_unpruned
from tiny import case
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.architecture import with_grids
from tpcal.plans.executor.handle import apply
from tpcal.plans.executor.prompt import ViewGrid, read_prompt
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.images.tiles import arrangement, sketches
from tpcal.plans.plan_records import Cut, Plan

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
UPPER, LOWER = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
QUARTERS = [
    (0.0, 0.0, 0.5, 0.5),
    (0.5, 0.0, 1.0, 0.5),
    (0.0, 0.5, 0.5, 1.0),
    (0.5, 0.5, 1.0, 1.0),
]
COLUMNS = [(0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 2 / 3, 1.0), (2 / 3, 0.0, 1.0, 1.0)]
ROWS = [(0.0, 0.0, 1.0, 1 / 3), (0.0, 1 / 3, 1.0, 2 / 3), (0.0, 2 / 3, 1.0, 1.0)]
PLAN = Plan((Cut(2, 0.5, "random"),))

# The pictures of the second prompt are 24 x 60 and 50 x 30 pixels (height x width).
SECOND = {
    # tiles of 24; 2.5 is as near to 3 tiles beside each other as to 2, and enough pixels for 3
    "internvl": ([*COLUMNS, WHOLE], [UPPER, LOWER, WHOLE]),
    "qianfan_ocr": ([*COLUMNS, WHOLE], [UPPER, LOWER, WHOLE]),
    "aya_vision": ([*COLUMNS, WHOLE], [UPPER, LOWER, WHOLE]),
    "cohere2_vision": ([*COLUMNS, WHOLE], [UPPER, LOWER, WHOLE]),
    # tiles of 48: not enough pixels for 3
    "got_ocr2": ([LEFT, RIGHT, WHOLE], [UPPER, LOWER, WHOLE]),
    # made 19 x 48 and 48 x 28, then whole tiles of 24
    "idefics3": ([LEFT, RIGHT, WHOLE], [*QUARTERS, WHOLE]),
    "smolvlm": ([LEFT, RIGHT, WHOLE], [*QUARTERS, WHOLE]),
    "granite_docling": ([*COLUMNS, WHOLE], [UPPER, LOWER, WHOLE]),  # 32 x 80 and 66 x 40, by 32
    # its processor takes columns for rows where it covers the picture with tiles
    "ovis2": ([WHOLE, *ROWS], [WHOLE, *QUARTERS]),
}


def grids_of(model: Any, inputs: Mapping[str, Any]) -> tuple[tuple[ViewGrid, ...], ...]:
    family = find(model)
    visual = family.visual_mask(model, inputs["input_ids"], None)
    prompt = read_prompt(visual, inputs.get("attention_mask"))
    return with_grids(family, model, prompt, inputs).grids


def regions(grids: tuple[ViewGrid, ...]) -> list[tuple[int, tuple[float, ...]]]:
    return [(grid.image, grid.region) for grid in grids]


@pytest.mark.parametrize("name", SECOND)
def test_tiles_lie_where_the_processor_cut_them(name):
    tiny = case(name, "eager")
    (grids,) = grids_of(tiny.model, tiny.rows[1])
    found = regions(grids)
    wanted = [(image, region) for image, parts in enumerate(SECOND[name]) for region in parts]
    assert [image for image, _ in found] == [image for image, _ in wanted]
    for (_, got), (_, want) in zip(found, wanted, strict=True):
        assert got == pytest.approx(want)


@pytest.mark.parametrize("name", SECOND)
def test_a_tile_shows_its_part_of_the_overview(name):
    tiny = case(name, "eager")
    for row in (tiny.rows[1], tiny.rows[3]):
        (grids,) = grids_of(tiny.model, row)
        pixels = row["pixel_values"].flatten(0, -4)
        overviews = {grid.image: at for at, grid in enumerate(grids) if grid.region == WHOLE}
        for at, grid in enumerate(grids):
            if grid.region == WHOLE:
                continue
            overview = pixels[overviews[grid.image]]
            others = [g.region for g in grids if g.image == grid.image and g.region != WHOLE]
            errors = {region: unlike(pixels[at], overview, region) for region in others}
            assert min(errors, key=errors.__getitem__) == grid.region


def unlike(tile: torch.Tensor, overview: torch.Tensor, region: tuple[float, ...]) -> float:
    """How much a tile differs from a part of the overview, both 6 x 6 pixels."""
    size = 12 * overview.shape[-1]  # whole pixels in halves and thirds
    x0, y0, x1, y1 = (round(edge * size) for edge in region)
    part = interpolate(overview[None], size)[0, :, y0:y1, x0:x1]
    return float((adaptive_avg_pool2d(part, 6) - adaptive_avg_pool2d(tile, 6)).square().mean())


def test_tokens_of_a_tile_stand_in_reading_order_after_pixel_shuffle():
    """36 patches, numbered row by row; four of them become one token."""
    patches = torch.arange(36.0)[None, :, None]
    internvl: Any = case("internvl", "eager").model.model
    idefics3: Any = case("idefics3", "eager").model.model.connector
    grid = grids_of(case("internvl", "eager").model, case("internvl", "eager").rows[0])[0][0]
    want = [
        {6 * (2 * row + down) + 2 * col + right for down in (0, 1) for right in (0, 1)}
        for row, col in zip(grid.row.tolist(), grid.col.tolist(), strict=True)
    ]
    shuffled = internvl.pixel_shuffle(patches.view(1, 6, 6, 1), scale_factor=0.5)
    assert [set(token) for token in shuffled.reshape(9, 4).tolist()] == want
    shuffled = idefics3.pixel_shuffle(patches, 2)
    assert [set(token) for token in shuffled[0].tolist()] == want


@pytest.mark.parametrize("name", SECOND)
def test_views_are_known_to_generate_too_also_with_beams(name):
    tiny = case(name, "eager")
    inputs = tiny.batch(tiny.rows)
    want = grids_of(tiny.model, inputs)
    for n_beams in (1, 3):
        if n_beams > 1:
            require_joint_beams()
        options = {"max_new_tokens": 2, "do_sample": False, "num_beams": n_beams}
        require_unpruned(lambda options=options: tiny.model.generate(**inputs, **options))
        with apply(tiny.model, PLAN) as handle:
            tiny.model.generate(**inputs, **options)
            assert handle.last is not None
            got = [regions(grids) for grids in handle.last.grids]
        assert got == [regions(grids) for grids in want for _ in range(n_beams)]
    assert "get_image_features" not in vars(tiny.model.base_model)


def test_patches_of_a_tile_are_named_by_their_place_in_the_image():
    tiny = case("idefics3", "eager")
    with apply(tiny.model, Plan((Cut(2, 1.0, "random"),))) as handle:
        tiny.model(**tiny.rows[1])
        assert handle.last is not None
        patches = handle.last.patches(0)
    assert len(patches) == 8 * 9
    # token 13 is the fifth of the second tile, its middle: tile columns 0.5..1, a third each
    assert (patches[13].image, patches[13].row, patches[13].col) == (0, 1, 1)
    assert patches[13].box == pytest.approx((0.5 + 1 / 6, 1 / 3, 0.5 + 2 / 6, 2 / 3))


@pytest.mark.parametrize("name", ["idefics3", "ovis2", "cohere2_vision", "aya_vision", "llama4"])
def test_without_ids_runs_are_images_and_a_warning_says_so(name, caplog):
    tiny = case(name, "eager")
    family, row = find(tiny.model), tiny.rows[1]
    visual = family.visual_mask(tiny.model, row["input_ids"], None)
    embeds = tiny.model.get_input_embeddings()(row["input_ids"])
    prompt = read_prompt(visual, None)
    (grids,) = family.grids(tiny.model, prompt, {"inputs_embeds": embeds})
    assert len(grids) == int((visual[0, 1:] & ~visual[0, :-1]).sum())  # where runs begin
    assert "every unbroken run of visual tokens counts as one" in caplog.text


def test_frames_of_a_video_are_images():
    tiny = case("smolvlm", "eager")
    (grids,) = grids_of(tiny.model, tiny.videos[1])
    assert regions(grids) == [(0, WHOLE), (1, WHOLE), (2, WHOLE)]


def test_images_side_by_side_are_told_apart():
    from tiny.idefics3 import image

    ids = [tiles.BOS, *image(0, 0), *image(1, 2), *image(1, 2), *image(0, 0), 40]
    (grids,) = grids_of(case("idefics3", "eager").model, {"input_ids": torch.tensor([ids])})
    assert regions(grids) == [
        (0, WHOLE),
        *[(1, LEFT), (1, RIGHT), (1, WHOLE)],
        *[(2, LEFT), (2, RIGHT), (2, WHOLE)],
        (3, WHOLE),
    ]


def test_tiles_without_an_overview_end_where_a_first_tile_comes_again():
    run = [tiles.IMAGE] * 9
    one = [tiles.START, tiles.TILE, *run, tiles.NEWLINE]
    ids = [tiles.BOS, *one, *one, 40]
    (grids,) = grids_of(case("idefics3", "eager").model, {"input_ids": torch.tensor([ids])})
    assert regions(grids) == [(0, WHOLE), (1, WHOLE)]


def test_tiles_that_form_no_rectangle_have_no_place():
    run = [tiles.IMAGE] * 9
    first = [tiles.START, tiles.TILE, *run, tiles.START, tiles.TILE + 1, *run, tiles.NEWLINE]
    ids = [tiles.BOS, *first, tiles.START, tiles.TILE + 4, *run, tiles.NEWLINE, 40]
    (grids,) = grids_of(case("idefics3", "eager").model, {"input_ids": torch.tensor([ids])})
    assert [len(grid.row) for grid in grids] == [9, 9, 9]
    assert all(grid.boxes().isnan().all() for grid in grids)


def test_the_arrangement_is_the_one_that_looks_like_the_overview():
    generator = torch.Generator().manual_seed(0)
    for n_rows, n_cols in ((1, 6), (2, 3), (3, 2), (6, 1)):
        picture = tiles.picture(32 * n_rows, 32 * n_cols, generator)
        whole = tiles.pixels([picture], 192)
        parts = interpolate(whole, (32 * n_rows, 32 * n_cols))
        cut = parts.view(3, n_rows, 32, n_cols, 32).permute(1, 3, 0, 2, 4).reshape(6, 3, 32, 32)
        (overview,) = sketches(interpolate(whole, (32, 32)))
        assert arrangement(sketches(cut), overview) == (n_rows, n_cols)


def test_pages_that_no_overview_follows_are_not_arranged():
    noise = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    looks = sketches(noise)
    assert arrangement(looks[:-1], looks[-1]) is None


def test_an_image_without_features_is_as_square_as_can_be():
    blank = torch.zeros(5, 3, 16, 16)
    assert arrangement(blank[:-1], blank[-1]) == (2, 2)


@pytest.mark.parametrize("name", ["internvl", "got_ocr2", "aya_vision", "cohere2_vision"])
def test_tiles_encoded_before_the_plan_was_applied_have_no_place(name):
    tiny = case(name, "eager")
    row = dict(tiny.rows[1])
    encoded = tiny.model.get_image_features(row.pop("pixel_values"), return_dict=True)
    (grids,) = grids_of(tiny.model, {**row, "mm_encoder_outputs": {"image": encoded}})
    assert all(grid.boxes().isnan().all() for grid in grids)
    assert [grid.n_rows for grid in grids] == [3] * len(grids)


def test_a_run_that_is_no_whole_number_of_tiles_is_refused():
    ids = torch.tensor([[tiles.BOS, *[tiles.IMAGE] * 10, 40]])
    with pytest.raises(UsageError, match=r"must be whole tiles of 9 tokens; got 10\."):
        grids_of(case("internvl", "eager").model, {"input_ids": ids})


@pytest.mark.parametrize("name", ["deepseek_vl", "deepseek_vl_hybrid", "janus"])
def test_every_image_is_a_square_also_beside_another(name):
    model = case(name, "eager").model
    ids = [tiles.BOS, *[tiles.IMAGE] * 72, 40, *[tiles.IMAGE] * 36, 41]
    (grids,) = grids_of(model, {"input_ids": torch.tensor([ids])})
    assert [(g.image, g.n_rows, g.n_cols, g.n_extra_cols) for g in grids] == [
        (image, 6, 6, 0) for image in range(3)
    ]
    assert all(two.image == one.image + 1 for one, two in pairwise(grids))


@pytest.mark.parametrize(("name", "n"), [("idefics2", 16), ("aria", 16)])
def test_resampled_tokens_have_an_order_and_no_place(name, n):
    tiny = case(name, "eager")
    (grids,) = grids_of(tiny.model, tiny.rows[1])
    assert [len(grid.row) for grid in grids] == [n, n]
    assert [grid.image for grid in grids] == [0, 1]
    assert all(grid.boxes().isnan().all() for grid in grids)
    assert (grids[0].col.diff() == 1).all()
    with apply(tiny.model, PLAN) as handle:
        tiny.model(**tiny.rows[1])
        assert handle.last is not None
        assert {patch.box for patch in handle.last.patches(0)} == {None}


def test_the_width_of_a_decoder_with_experts_is_that_of_those_a_token_visits():
    # two of four experts of 48, and one shared
    assert decoder_shape(case("aria", "eager").model).ffn == 3 * 48
