from __future__ import annotations

from typing import Any

import pytest

from tpcal.integrations.decoding import read_decoding


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, {"do_sample": False, "num_beams": 1}),
        (
            {"temperature": 0, "top_p": 1.0, "do_sample": False},
            {"do_sample": False, "num_beams": 1},
        ),
        ({"temperature": 0, "do_sample": True}, {"do_sample": False, "num_beams": 1}),
        ({"temperature": 0.7, "do_sample": False}, {"do_sample": False, "num_beams": 1}),
        ({"temperature": 0.7}, {"do_sample": True, "num_beams": 1, "temperature": 0.7}),
        (
            {"do_sample": True, "top_p": 0.9, "top_k": None},
            {"do_sample": True, "num_beams": 1, "top_p": 0.9},
        ),
        ({"num_beams": 3}, {"do_sample": False, "num_beams": 3}),
    ],
)
def test_answers_are_sampled_only_where_the_task_asks_for_it(
    settings: dict[str, Any], how: dict[str, Any]
) -> None:
    assert read_decoding(settings, 64).how == how


def test_the_length_is_the_tasks_or_the_default() -> None:
    assert read_decoding({"max_new_tokens": 16}, 64).max_new_tokens == 16
    assert read_decoding({"max_new_tokens": None}, 64).max_new_tokens == 64


@pytest.mark.parametrize(
    ("until", "cut"),
    [
        (["\n\n", "."], "A cat"),
        ("\n\n", "A cat. It sleeps."),
        (["sleeps", "cat"], "A"),
        ([""], "A cat. It sleeps.\n\nNext: a dog."),
        ([], "A cat. It sleeps.\n\nNext: a dog."),
    ],
)
def test_an_answer_ends_before_the_first_stop(until: Any, cut: str) -> None:
    assert read_decoding({"until": until}, 64).cut(" A cat. It sleeps.\n\nNext: a dog.\n") == cut


def test_settings_that_are_passed_over_are_named() -> None:
    settings = {"until": [], "seed": 4, "image_aspect_ratio": "original", "max_new_tokens": 3}
    assert read_decoding(settings, 64).unknown == ("image_aspect_ratio", "seed")
