"""Sizes of prompts in classes that are fixed, counted, added, and read with every problem."""

from __future__ import annotations

import json

import pytest

from tpcal.plans.formats import sizes_text
from tpcal.plans.input_sizes import InputSizes, RequestSize, read_input_sizes, size_class
from tpcal.plans.plan_file import dump_plan, parse_plan
from tpcal.plans.plan_records import Plan
from tpcal.plans.record_reader import Reader

SIZES = InputSizes.of([RequestSize(576, 1, 40), RequestSize(576, 1, 41), RequestSize(1200, 2, 9)])


def test_a_class_is_an_interval_of_less_than_an_eighth_that_begins_with_its_name():
    assert [size_class(n) for n in range(16)] == list(range(16))
    classes = [size_class(n) for n in range(70_000)]
    assert classes == sorted(classes)
    assert all(name <= n < name * 9 / 8 for n, name in enumerate(classes) if n)
    assert all(size_class(name) == name for name in set(classes))


def test_a_summary_of_parts_is_the_sum_of_their_summaries():
    more = [RequestSize(144, 3, 40), RequestSize(0, 0, 7)]
    both = InputSizes.of(more) + SIZES
    assert both == SIZES + InputSizes.of(more)
    assert both.n_prompts == 5
    assert both.n_text == {40: 3, 9: 1, 7: 1}


def test_ranges_hold_every_size_a_class_can_have_had():
    assert SIZES.ranges() == {"n_visual": (576, 1279), "n_images": (1, 2), "n_text": (9, 43)}
    classes = [InputSizes.of([RequestSize(n, n, n)]).ranges()["n_text"] for n in range(5_000)]
    assert all(low <= n <= high for n, (low, high) in enumerate(classes))
    assert all(size_class(high) == low < size_class(high + 1) for low, high in classes)


def test_a_sentence_says_how_large_the_prompts_were():
    one = InputSizes.of([RequestSize(576, 1, 12)])
    assert sizes_text(one) == "1 prompt of 576 to 639 visual tokens, 1 image and 12 text tokens"
    assert sizes_text(SIZES).endswith("visual tokens, 1 to 2 images and 9 to 43 text tokens")


def test_plain_data_is_read_as_it_was_written():
    reader = Reader()
    data = json.loads(json.dumps(SIZES.to_data()))
    assert data["n_visual"] == [[576, 2], [1152, 1]]
    assert read_input_sizes(reader, data) == SIZES
    assert read_input_sizes(reader, None) is None
    assert not reader.problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n_text": [[40, 2]]}, "input_sizes must count the same prompts for each size"),
        ({"n_text": [[41, 3]]}, "input_sizes.n_text must be pairs of a class"),
        ({"n_text": [[40, 2], [40, 1]]}, "each class once"),
        ({"n_text": [[40, 3.0]]}, "input_sizes.n_text must be pairs"),
        ({"n_text": [[40, 0], [9, 3]]}, "input_sizes.n_text must be pairs"),
        ({"n_text": {40: 3}}, "input_sizes.n_text must be pairs"),
        ({"n_text": None, "n_images": "one"}, "input_sizes.n_images must be pairs"),
        ({"n_video": []}, "input_sizes keys must be among n_visual, n_images, n_text"),
        ({name: [] for name in SIZES.to_data()}, "at least one"),
    ],
)
def test_damaged_data_is_refused_with_its_problem(change, problem):
    reader = Reader()
    found = read_input_sizes(reader, {**SIZES.to_data(), **change})
    assert problem in " ".join(reader.problems)
    assert found is None or "n_video" in change


def test_a_plan_has_the_sizes_on_one_line_of_its_provenance():
    plan = Plan(provenance={"seed": 0, "input_sizes": SIZES.to_data(), "time": "now"})
    text = dump_plan(plan)
    assert (
        "  input_sizes: {n_visual: [[576, 2], [1152, 1]], n_images: [[1, 2], [2, 1]], "
        "n_text: [[9, 1], [40, 2]]}\n"
    ) in text
    assert parse_plan(text) == plan
    assert parse_plan(text).digest == plan.digest
