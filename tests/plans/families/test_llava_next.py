"""LLaVA-NeXT and its video model: overview, tiles without padding, newlines, frames."""

from __future__ import annotations

import pytest
import tiny
import torch
from pictures import SIDE
from places import cells, forward_grids, generate_grids, outline, reading_order, same
from releases import require_joint_beams

from tpcal.plans.families.llava_next import tiled_shape, with_newlines

TILED = ["llava_next", "llava_next_video"]


@pytest.fixture(params=TILED)
def case(request):
    return tiny.case(request.param, "sdpa")


def test_an_image_is_an_overview_and_rows_of_tiles_that_end_in_a_newline(case):
    ((overview, tiles),) = forward_grids(case.model, case.rows[0])  # 16 x 24 pixels
    assert cells(overview) == reading_order(4, 4)
    # scaled into 16 x 32 pixels it fills 6 of 8 columns of tokens; newlines stand in a seventh
    assert cells(tiles) == reading_order(4, 7)
    assert (tiles.n_rows, tiles.n_cols, tiles.n_extra_cols) == (4, 7, 1)
    boxes = tiles.boxes()
    assert boxes[0].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 4])
    assert boxes[-2].tolist() == pytest.approx([5 / 6, 3 / 4, 1, 1])
    assert boxes.isnan().any(dim=1).nonzero()[:, 0].tolist() == [6, 13, 20, 27]


def test_views_of_one_image_share_its_number_and_rows_start_anew(case):
    batch = case.batch(case.rows)
    assert outline(forward_grids(case.model, batch)) == [
        [(0, 0, 4, 4, 0), (0, 0, 4, 7, 1)],
        [(0, 0, 4, 4, 0), (0, 0, 10, 5, 1), (1, 0, 4, 4, 0), (1, 0, 4, 5, 1)],
        [],
        [(0, 0, 4, 4, 0), (0, 0, 8, 9, 1)],
    ]


def test_generate_knows_the_sizes_though_it_encodes_beforehand(case):
    batch = case.batch(case.rows)
    forward = forward_grids(case.model, batch)
    assert same(generate_grids(case.model, batch), forward)
    require_joint_beams()
    twice = tuple(row for row in forward for _ in range(2))
    assert same(generate_grids(case.model, batch, num_beams=2), twice)


@pytest.mark.parametrize("seed", range(20))
def test_tokens_stand_where_the_model_packs_them(seed):
    """Features that carry their own place go through the model's packing."""
    model = tiny.case("llava_next", "sdpa").model
    size = torch.randint(4, 100, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    side = SIDE // 4
    grid = with_newlines(*tiled_shape(model, side, size))
    packed = _packed_places(model, size, side)
    area = grid.col < grid.n_cols - 1
    assert len(packed) == len(area)
    assert packed[~area].eq(-1).all()
    first = packed[0]  # padding stands before it
    assert torch.equal(packed[area] - first, torch.stack([grid.row, grid.col], dim=1)[area])


def _packed_places(model, size, side):
    """[n, 2] row and column in the padded picture of every token of the tiles; -1 at newlines."""
    resolution = max(model.config.image_grid_pinpoints, key=lambda best: _preference(size, best))
    n_down, n_across = resolution[0] // SIDE, resolution[1] // SIDE
    y, x = torch.meshgrid(
        torch.arange(n_down * side), torch.arange(n_across * side), indexing="ij"
    )
    places = (
        torch.stack([y, x], dim=-1).unflatten(0, (n_down, side)).unflatten(2, (n_across, side))
    )
    tiles = places.transpose(1, 2).reshape(n_down * n_across, side * side, 2).float()
    features = torch.cat([tiles.new_zeros(1, side * side, 2), tiles])
    newline = torch.full((2,), -1.0)
    packed, _ = model.model.pack_image_features(
        [features], torch.tensor([size]), "default", image_newline=newline
    )
    return packed[0][side * side :].long()


def _preference(size, best):
    """Most pixels of the image left after scaling, then least waste."""
    height, width = size
    scale = min(best[1] / width, best[0] / height)
    left = min(int(width * scale) * int(height * scale), width * height)
    return left, left - best[0] * best[1]


def test_frames_of_a_video_are_views_of_one_number():
    case = tiny.case("llava_next_video", "sdpa")
    batch = case.batch(case.videos)
    video = [(0, 0, 2, 2, 0), (0, 1, 2, 2, 0)]  # pooled two by two
    grids = forward_grids(case.model, batch)
    assert outline(grids) == [video, [*video, (1, 0, 4, 4, 0), (1, 0, 4, 7, 1)]]
    assert same(generate_grids(case.model, batch), grids)


def test_features_from_elsewhere_take_the_sizes_that_come_with_them(case, caplog):
    row = dict(case.rows[3])
    inputs = {"pixel_values": row.pop("pixel_values"), "image_sizes": row["image_sizes"]}
    with torch.no_grad():
        features = case.model.model.get_image_features(**inputs, return_dict=True)
    encoded = {**row, "mm_encoder_outputs": {"image": features}}
    assert same(forward_grids(case.model, encoded), forward_grids(case.model, case.rows[3]))
    assert not caplog.records
    del encoded["image_sizes"]  # then the run of tokens is all that is known
    assert outline(forward_grids(case.model, encoded)) == [[(0, 0, 1, 88, 0)]]
    assert "sizes of the images are not known" in caplog.text
