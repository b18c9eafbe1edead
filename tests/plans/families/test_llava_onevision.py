"""LLaVA-OneVision: shrunk tiles, several images without tiles, pooled frames and their end."""

from __future__ import annotations

from importlib import import_module
from inspect import signature

import pytest
import tiny
import torch
from places import cells, forward_grids, generate_grids, outline, reading_order, same

from tpcal.plans.executor import compat
from tpcal.plans.families import find
from tpcal.plans.families.llava_next import with_newlines
from tpcal.plans.families.llava_onevision import _shrunk


@pytest.fixture(scope="module")
def case():
    return tiny.case("llava_onevision", "sdpa")


def test_an_only_image_is_tiled_and_shrunk_to_the_limit(case):
    assert outline(forward_grids(case.model, case.rows[0])) == [[(0, 0, 4, 4, 0), (0, 0, 4, 7, 1)]]
    # 8 x 8 tokens are more than 2 x 16: both sides shrink by the root of 64 / 32, rounded down
    ((overview, tiles),) = forward_grids(case.model, case.rows[3])
    assert cells(overview) == reading_order(4, 4)
    assert cells(tiles) == reading_order(5, 6)
    assert tiles.n_extra_cols == 1
    assert tiles.boxes()[0].tolist() == pytest.approx([0, 0, 1 / 5, 1 / 5])


def test_several_images_have_no_tiles_but_an_end_token_each(case):
    ((first, second),) = forward_grids(case.model, case.rows[1])
    assert (first.image, second.image) == (0, 1)
    assert cells(first) == [*reading_order(4, 4), (3, 4)]
    assert (first.n_cols, first.n_extra_cols) == (5, 1)
    assert first.boxes()[16].isnan().all()


def test_frames_are_pooled_and_the_last_holds_the_end_of_the_video(case):
    grids = forward_grids(case.model, case.batch(case.videos))
    video = [(0, 0, 2, 2, 0), (0, 1, 2, 3, 1)]
    assert outline(grids) == [video, [*video, (1, 0, 4, 4, 0), (1, 0, 4, 7, 1)]]
    assert cells(grids[0][1]) == [*reading_order(2, 2), (1, 2)]


def test_generate_finds_the_same_places(case):
    batch = case.batch(case.rows + case.videos)
    forward = forward_grids(case.model, batch)
    assert same(generate_grids(case.model, batch), forward)
    thrice = tuple(row for row in forward for _ in range(3))
    many = generate_grids(case.model, batch, do_sample=True, num_return_sequences=3)
    assert same(many, thrice)


@pytest.mark.parametrize("seed", range(20))
def test_the_tiles_have_as_many_tokens_as_the_model_makes(case, seed):
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(4, 100, (2,), generator=generator)
    inputs = {"pixel_values": torch.randn(1, 5, 3, 16, 16), "image_sizes": size[None]}
    with torch.no_grad():
        features = case.model.model.get_image_features(**inputs, return_dict=True)
    grid = with_newlines(*_shrunk(case.model, 4, size.tolist()))
    assert 16 + len(grid.row) == len(features.pooler_output[0])


@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_what_the_tower_shows_goes_to_the_tokens_that_its_patches_become(name):
    """States of the tower, dealt to visual tokens and then projected, are the features.

    A linear projector may stand before or behind the pooling.
    """
    case = import_module(f"tiny.{name}").build("sdpa")
    base, layer = case.model.base_model, case.model.config.vision_feature_layer
    base.multi_modal_projector = torch.nn.Linear(32, 64)
    seen = []
    base.vision_tower.register_forward_hook(
        lambda module, args, output: seen.append(output.hidden_states[layer])
    )
    for row in (*case.rows, *case.videos):
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels not in row:
                continue
            takes = signature(getattr(base, f"get_{kind}_features")).parameters
            inputs = {k: v for k, v in row.items() if k in takes}
            given = inputs | {"pixel_values" if pixels not in takes else pixels: row[pixels]}
            inputs = compat.encoded_with(kind, given)
            with torch.no_grad():
                made = getattr(base, f"get_{kind}_features")(**given).pooler_output
                values = find(case.model).by_visual_token(case.model, [seen.pop()], inputs)
                bare = values[:, 0] == -torch.inf
                projected = base.multi_modal_projector(values)
            projected[bare] = base.image_newline.detach()
            features = torch.cat(list(made))
            if (
                pixels not in takes
            ):  # before transformers 5.19, frames are apart, and newlines later
                projected, features = projected[~bare], features.flatten(0, -2)
            torch.testing.assert_close(projected, features, atol=1e-5, rtol=1e-5)
