"""Which images of a request are pruned, and why the others are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tpcal.integrations.vllm.requests import n_visual, pruned_images, unpruned_because
from tpcal.integrations.vllm.stages import Span


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


IMAGE, VIDEO = _feature("image", 3, 16), _feature("video", 30, 8)
ROWS = _feature("image", 20, 9, "vvvtvvvtt")


def test_an_image_is_pruned_whatever_stands_beside_it() -> None:
    asked = request(VIDEO, ROWS, IMAGE)
    assert pruned_images(asked) == (Span(3, 16), Span(20, 6, (3,)))
    assert unpruned_because(asked) is None
    assert n_visual(asked) == 16 + 8 + 6


def test_marks_around_an_image_are_text() -> None:
    assert pruned_images(request(_feature("image", 20, 9, "tvvvvvvtt"))) == (Span(21, 6),)


def test_marks_between_the_rows_of_an_image_are_text_too() -> None:
    (span,) = pruned_images(request(_feature("image", 20, 9, "tvvtvttvt")))
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
        (request(off=True), "no_image"),
        (request(IMAGE, _feature("image", 30, 10)), "ends_with_image"),
    ],
)
def test_the_reason_why_nothing_is_pruned(asked: Any, reason: str) -> None:
    assert pruned_images(asked) == ()
    assert unpruned_because(asked) == reason
