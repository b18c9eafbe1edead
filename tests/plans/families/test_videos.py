"""Videos, and what is peculiar to GLM-V, VideoLLaMA3 and ERNIE-VL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from releases import require_unpruned
from tiny import case
from torch import Tensor

from tpcal.plans.executor.handle import apply
from tpcal.plans.families import decoder_shape, find
from tpcal.plans.laws import LAWS, Case
from tpcal.plans.laws.trial import Trial
from tpcal.plans.plan_records import Cut, Plan

HALF = Plan((Cut(2, 0.5, "random"), Cut(5, 0.25, "grid")))
OF_VIDEOS = [
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm4v",
    "video_llama_3",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "gemma4",
    "gemma4_shared",
    "llava_next_video",
    "llava_onevision",
    "video_llava",
]
LAW = {law.name: law for law in LAWS}


@pytest.fixture(scope="module", params=OF_VIDEOS)
def trial(request) -> Trial:
    """Prompts with videos, one with words only, and one with an image where it may join them."""
    made: Case = case(request.param, "sdpa")
    rows = [*made.videos, made.rows[2]]
    if request.param != "glm4v":  # takes all features of a batch for those of images or of videos
        rows.append(made.rows[0])
    whole = Trial(replace(made, rows=tuple(rows)))
    # Gemma 4's forward takes videos of several lengths from transformers 5.23 on.
    require_unpruned(lambda: whole.forward(whole.left, n_steps=1))
    return whole


@pytest.mark.parametrize(
    "law",
    [
        *("reference", "positions", "patches"),
        pytest.param("keep all", marks=pytest.mark.nightly),
        pytest.param("rows alone", marks=pytest.mark.nightly),
    ],
)
def test_the_law_holds_for_videos(trial, law):
    verdict = LAW[law].judge(trial)
    if verdict.error is not None:
        raise verdict.error
    assert verdict.holds, verdict.detail


@pytest.mark.parametrize("name", ["video_llama_3", "ernie4_5_vl_moe", "glm4v"])
def test_every_step_of_a_video_is_a_view_in_generate_too(name):
    tiny = case(name, "sdpa")
    with apply(tiny.model, HALF) as handle:
        tiny.model.generate(
            **tiny.batch(tiny.videos), max_new_tokens=2, do_sample=False, pad_token_id=0
        )
        assert handle.last is not None
        grids = handle.last.grids
    views = [[(g.image, g.time, g.n_rows, g.n_cols) for g in row] for row in grids]
    first = [(0, t, 3, 3) for t in range(2 if name == "glm4v" else 1)]
    assert views[0] == [(0, 0, 2, 4), (0, 1, 2, 4), (0, 2, 2, 4)]
    assert views[1] == [*first, (1, 0, 2, 3), (1, 1, 2, 3)]


def test_a_merge_size_of_its_own_shrinks_an_image():
    """VideoLLaMA3 merges frames two by two and images not at all; here it is told per image."""
    tiny = case("video_llama_3", "sdpa")
    family, row = find(tiny.model), dict(tiny.rows[1])
    assert row["image_grid_thw"].tolist() == [[1, 4, 10], [1, 8, 6]]
    views = family.sizes(tiny.model, {**row, "image_merge_sizes": torch.tensor([1, 2])})
    assert list(views.values()) == [[(1, 4, 10), (1, 4, 3)]]


def test_two_frames_of_patches_make_one_step():
    tiny = case("ernie4_5_vl_moe", "sdpa")
    row = tiny.videos[0]
    assert row["video_grid_thw"].tolist() == [[6, 4, 8]]  # six frames of 4 x 8 patches
    assert list(find(tiny.model).sizes(tiny.model, row).values()) == [[(3, 2, 4)]]


def test_survivors_go_to_the_experts_they_went_to_before():
    """ERNIE-VL: the tokens around an image and those of it have experts of their own."""
    tiny = case("ernie4_5_vl_moe", "sdpa")
    seen: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[..., None]:
        return lambda _, args, kwargs: seen.__setitem__(layer, kwargs["moe_mm_token_type_ids"])

    inputs = tiny.batch(tiny.rows[:2])
    with apply(tiny.model, HALF) as handle:
        hooks = [  # behind the executor's
            layer.register_forward_pre_hook(note(at), with_kwargs=True)
            for at, layer in enumerate(find(tiny.model).layers(tiny.model))
        ]
        tiny.model(**inputs)
        assert handle.last is not None
        kept = [[len(row) for row in cut.kept] for cut in handle.last.cuts]
    for hook in hooks:
        hook.remove()
    around = torch.tensor([2, 4])  # tokens around one image and around two
    n_text = inputs["attention_mask"].sum(dim=1) - torch.tensor([16, 22])
    for layer, n_visual in ((1, [16, 22]), (2, kept[0]), (7, kept[1])):
        n = torch.tensor(n_visual)
        real = [row[-length:] for row, length in zip(seen[layer], n_text + n, strict=True)]
        assert [int(row.bool().sum()) for row in real] == (n + around).tolist()


@pytest.mark.parametrize(
    ("name", "ffn"),
    [
        ("glm4v", 128),
        ("glm4v_moe", (2 + 1) * 48),  # two of four experts and one that all tokens visit
        ("ernie4_5_vl_moe", 2 * 32 + 48),  # two experts for images and the one of all tokens
    ],
)
def test_the_width_of_experts_is_that_of_those_a_token_visits(name, ffn):
    assert decoder_shape(case(name, "sdpa").model).ffn == ffn
