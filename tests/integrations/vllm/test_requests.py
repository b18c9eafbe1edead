"""Which images and videos of a request are pruned, and why the others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tpcal import Cut, Plan
from tpcal.integrations.vllm import video_positions
from tpcal.integrations.vllm.requests import Requests, n_visual, problem
from tpcal.integrations.vllm.stages import Span
from tpcal.plans.engines import FRAMES, VLLM, WHOLE


class Position:
    """What vLLM says of the place of an image; like it, it can be a key."""

    def __init__(self, offset: int, length: int, counts: list[int] | None) -> None:
        self.offset, self.length, self.embeds_cumsum = offset, length, counts

    def get_num_embeds(self) -> int:
        return self.embeds_cumsum[-1] if self.embeds_cumsum else self.length


def _feature(modality: str, start: int, length: int, visual: str = "") -> Any:
    counts = [visual[: at + 1].count("v") for at in range(length)] if visual else None
    return SimpleNamespace(modality=modality, mm_position=Position(start, length, counts))


def request(*features: Any, off: bool = False, prompt_logprobs: int | None = None) -> Any:
    extra = {"tpcal": "off"} if off else None
    params = SimpleNamespace(extra_args=extra, prompt_logprobs=prompt_logprobs)
    return SimpleNamespace(
        mm_features=list(features) or None, sampling_params=params, prompt_token_ids=[0] * 40
    )


def _of_named_tokens(*features: Any) -> Any:
    asked = request(*features)
    asked.sampling_params.prompt_logprob_token_ids = [[1, 2]]
    return asked


@pytest.mark.parametrize("value", [False, "OFF", {"off": True}, "on"])
def test_a_mistyped_opting_out_is_an_error(value: Any) -> None:
    asked = request(IMAGE)
    assert problem(asked) is None
    assert problem(request(IMAGE, off=True)) is None
    asked.sampling_params.extra_args = {"tpcal": value, "other": 1}
    assert 'must be "off"' in str(problem(asked))


def test_a_prompt_in_parts_is_an_error() -> None:
    asked = request(IMAGE)
    asked.resumable = True
    assert "takes no prompts that arrive in parts" in str(problem(asked))


IMAGE, VIDEO = _feature("image", 3, 16), _feature("video", 30, 8)
ROWS = _feature("image", 20, 9, "vvvtvvvtt")
STEPS = _feature("video", 20, 9, "tvvttvvvt")
PLAN = Plan(cuts=(Cut(2, 0.5, "diversity"),))
ON_IMAGES, ON_VIDEOS, ON_FRAMES = (Requests(PLAN, videos) for videos in ("", WHOLE, FRAMES))


def test_images_and_videos_are_pruned_in_order() -> None:
    asked = request(VIDEO, ROWS, IMAGE)
    assert ON_VIDEOS.pruned(asked).spans == (Span(3, 16), Span(20, 6, (3,)), Span(30, 8))
    assert ON_VIDEOS.unpruned_because(asked) is None
    assert n_visual(asked) == 16 + 8 + 6


def test_what_is_pruned_is_found_once_for_each_record_of_a_request() -> None:
    asked, other = request(IMAGE), request(ROWS)
    found = ON_IMAGES.pruned(asked)
    assert ON_IMAGES.pruned(asked) is found
    assert ON_IMAGES.pruned(other).spans != found.spans
    question = Requests(Plan(cuts=(Cut(2, 0.5, "cdpruner"),)))
    assert (found.together, question.pruned(asked).together) == (0, 40)


def test_an_image_is_pruned_whatever_stands_beside_it() -> None:
    asked = request(_feature("audio", 30, 5), ROWS)
    assert ON_IMAGES.pruned(asked).spans == (Span(20, 6, (3,)),)
    assert ON_IMAGES.unpruned_because(asked) is None


def test_an_image_beside_a_video_that_is_not_pruned_is_left_too() -> None:
    asked = request(VIDEO, IMAGE)
    assert ON_IMAGES.pruned(asked).spans == ()
    assert ON_IMAGES.unpruned_because(asked) == "video"
    assert ON_IMAGES.prefix_end(asked) == 3  # what others put behind the same image was pruned


def test_the_steps_of_a_video_are_one_set_or_each_is_its_own() -> None:
    assert ON_VIDEOS.pruned(request(STEPS)).spans == (Span(21, 5, (2, 3)),)
    assert ON_FRAMES.pruned(request(STEPS)).spans == (Span(21, 2), Span(25, 3))
    assert ON_FRAMES.pruned(request(ROWS)).spans == (Span(20, 6, (3,)),)


def test_other_requests_read_what_stands_before_the_first_image_or_video() -> None:
    assert ON_VIDEOS.prefix_end(request(VIDEO, STEPS)) == 21
    assert ON_VIDEOS.prefix_end(request(VIDEO, IMAGE)) == 3
    assert ON_VIDEOS.prefix_end(request()) is None


def test_marks_around_an_image_are_text() -> None:
    asked = request(_feature("image", 20, 9, "tvvvvvvtt"))
    assert ON_IMAGES.pruned(asked).spans == (Span(21, 6),)


def test_marks_between_the_rows_of_an_image_are_text_too() -> None:
    (span,) = ON_IMAGES.pruned(request(_feature("image", 20, 9, "tvvtvttvt"))).spans
    assert (span, span.end) == (Span(21, 4, (2, 4, 5)), 28)
    assert span.places.tolist() == [21, 22, 24, 27]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), "no_image"),
        (request(_feature("audio", 0, 5)), "no_image"),
        (request(VIDEO), "video"),
        (request(_feature("image", 20, 3, "ttt")), "no_image"),
        (request(_feature("image", 20, 3, "ttt"), VIDEO), "video"),
        (request(IMAGE, off=True), "opted_out"),
        (request(VIDEO, off=True), "opted_out"),
        (request(IMAGE, prompt_logprobs=1), "prompt_logprobs"),
        (_of_named_tokens(IMAGE), "prompt_logprobs"),
        (request(off=True), "no_image"),
        (request(IMAGE, _feature("image", 30, 10)), "ends_with_image"),
    ],
)
def test_the_reason_why_nothing_is_pruned(asked: Any, reason: str) -> None:
    assert ON_IMAGES.pruned(asked).spans == ()
    assert ON_IMAGES.unpruned_because(asked) == reason


def test_a_prompt_may_end_with_a_video_too() -> None:
    asked = request(_feature("video", 30, 10))
    assert ON_VIDEOS.unpruned_because(asked) == "ends_with_image"


def test_selectors_that_treat_steps_apart_leave_videos_alone() -> None:
    steps, frames = "Qwen2_5_VLForConditionalGeneration", "InternVLForConditionalGeneration"
    dart = Plan(cuts=(Cut(2, 0.5, "dart"),))
    assert [VLLM.videos(PLAN, name) for name in (steps, frames)] == [WHOLE, FRAMES]
    assert [VLLM.videos(plan, steps) for plan in (dart, PLAN)] == ["", WHOLE]
    assert VLLM.videos(PLAN, "LlavaForConditionalGeneration") == ""


def _video(
    grid: tuple[int, int, int], seconds: float, *, name: str = "", sent: bool = True
) -> Any:
    fields = {"video_grid_thw": torch.tensor(grid), "second_per_grid_ts": torch.tensor(seconds)}
    data = {key: SimpleNamespace(data=value) for key, value in fields.items()}
    feature = _feature("video", 3, 8)
    feature.data, feature.mm_hash = (data if sent else None), name
    return feature


VISION = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4)
CONFIG = SimpleNamespace(
    model_config=SimpleNamespace(hf_config=SimpleNamespace(vision_config=VISION))
)


@pytest.mark.parametrize(
    ("grid", "seconds", "reason"),
    [
        ((4, 6, 10), 1 / 3, None),  # 0, 1, 2, 4 and 5 columns
        ((4, 6, 8), 1 / 3, "video_positions"),  # 4 columns
        ((2, 8, 8), 1.0, "video_positions"),  # 0, 4 and 4 columns
    ],
)
def test_videos_that_reach_further_in_time_than_in_space(
    grid: tuple[int, int, int], seconds: float, reason: str | None
) -> None:
    asked = request(_video(grid, seconds))
    video_positions.note(CONFIG, asked)
    assert ON_VIDEOS.unpruned_because(asked) == reason


def test_a_video_is_known_when_its_data_are_not_sent_again() -> None:
    for sent in (True, False):
        asked = request(_video((9, 2, 2), 1.0, name="long", sent=sent))
        video_positions.note(CONFIG, asked)
        assert ON_VIDEOS.unpruned_because(asked) == "video_positions"


def test_a_request_that_opts_out_keeps_its_reason() -> None:
    asked = request(_video((9, 2, 2), 1.0), off=True)
    video_positions.note(CONFIG, asked)
    assert ON_VIDEOS.unpruned_because(asked) == "opted_out"


def test_products_that_round_up_in_single_precision_differ() -> None:
    step = 4 * float(torch.tensor(1 / 29))  # below 4 / 29 in float64, so that 29 of them miss 4
    assert video_positions.differ((30, 9, 9), step)
    assert not video_positions.differ((29, 9, 9), step)
