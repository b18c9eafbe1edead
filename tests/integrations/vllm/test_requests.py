"""Which images of a request are pruned, and why the others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tpcal.integrations.vllm.requests import n_visual, pruned_images, unpruned_because
from tpcal.integrations.vllm.stages import Span


def _feature(modality: str, start: int, length: int, visual: str = "") -> Any:
    counts = [visual[: at + 1].count("v") for at in range(length)] if visual else None
    place = SimpleNamespace(
        offset=start,
        length=length,
        embeds_cumsum=counts,
        get_num_embeds=lambda: counts[-1] if counts else length,
    )
    return SimpleNamespace(modality=modality, mm_position=place)


def request(*features: Any, off: bool = False, prompt_logprobs: int | None = None) -> Any:
    extra = {"tpcal": "off"} if off else None
    params = SimpleNamespace(extra_args=extra, prompt_logprobs=prompt_logprobs)
    return SimpleNamespace(
        mm_features=list(features) or None, sampling_params=params, prompt_token_ids=[0] * 40
    )


IMAGE, VIDEO = _feature("image", 3, 16), _feature("video", 30, 8)
ROWS = _feature("image", 20, 9, "vvvtvvvtt")


def test_an_image_is_pruned_whatever_stands_beside_it() -> None:
    asked = request(VIDEO, ROWS, IMAGE)
    assert pruned_images(asked) == (Span(3, 16),)
    assert unpruned_because(asked) is None
    assert n_visual(asked) == 16 + 8 + 6


def test_marks_around_an_image_are_text() -> None:
    assert pruned_images(request(_feature("image", 20, 9, "tvvvvvvtt"))) == (Span(21, 6),)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(), "no_image"),
        (request(_feature("audio", 0, 5)), "no_image"),
        (request(VIDEO), "video"),
        (request(ROWS, VIDEO), "tokens_between"),
        (request(IMAGE, off=True), "opted_out"),
        (request(VIDEO, off=True), "opted_out"),
        (request(IMAGE, prompt_logprobs=1), "prompt_logprobs"),
        (request(off=True), "no_image"),
        (request(IMAGE, _feature("image", 30, 10)), "ends_with_image"),
    ],
)
def test_the_reason_why_nothing_is_pruned(asked: Any, reason: str) -> None:
    assert pruned_images(asked) == ()
    assert unpruned_because(asked) == reason
