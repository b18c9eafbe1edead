"""LLaVA-1.5, VipLLaVA and Video-LLaVA: square images, with a class token or without."""

from __future__ import annotations

import pytest
import tiny
from pictures import IMAGE, N_TOWER, VIDEO
from places import cells, forward_grids, generate_grids, outline, reading_order, same
from releases import require_joint_beams

from tpcal.plans.families import find


@pytest.mark.parametrize("name", ["llava", "vipllava", "video_llava"])
def test_every_image_is_a_square(name):
    case = tiny.case(name, "sdpa")
    grids = forward_grids(case.model, case.batch(case.rows))
    first, second = (0, 0, 4, 4, 0), (1, 0, 4, 4, 0)
    assert outline(grids) == [[first], [first, second], [], [first]]
    assert cells(grids[0][0]) == reading_order(4, 4)
    assert same(generate_grids(case.model, case.batch(case.rows)), grids)


def test_frames_of_video_llava_begin_with_their_class_tokens():
    case = tiny.case("video_llava", "sdpa")
    batch = case.batch(case.videos)
    grids = forward_grids(case.model, batch)
    video = [(0, 0, 4, 5, 1), (0, 1, 4, 5, 1)]
    assert outline(grids) == [video, [*video, (1, 0, 4, 4, 0)]]
    assert cells(grids[0][1]) == [(0, 4), *reading_order(4, 4)]
    assert grids[0][1].boxes()[0].isnan().all()
    require_joint_beams()
    assert same(
        generate_grids(case.model, batch, num_beams=2), tuple(r for r in grids for _ in "ab")
    )


def test_image_and_video_tokens_are_both_visual():
    case = tiny.case("video_llava", "sdpa")
    ids = case.videos[1]["input_ids"]
    visual = find(case.model).visual_mask(case.model, ids, None)
    assert visual.sum() == (ids == IMAGE).sum() + (ids == VIDEO).sum() == 3 * N_TOWER + 2
