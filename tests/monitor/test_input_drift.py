"""Drift of the sizes of requests: found soon where it is, and rarely where it is not."""

from __future__ import annotations

import random

import pytest
import torch
from models import batch, prompt, tiny_llava

from tpcal.monitor.input_drift import InputDrift
from tpcal.monitor.request_sizes import sizes_of
from tpcal.plans.executor.handle import apply
from tpcal.plans.input_sizes import InputSizes, RequestSize
from tpcal.plans.plan_records import Cut, Plan


def one_image(draw):
    return RequestSize(144, 1, draw.randint(5, 9))


def one_or_two(draw):
    n = draw.choice([1, 1, 1, 2])
    return RequestSize(144 * n, n, draw.randint(5, 50))


def two_images(draw):
    return RequestSize(288, 2, draw.randint(5, 9))


def found(before, after, *, n_before=60, n_after=60, seed=0, level=0.05, reference=()):
    """(number of the request, name) of each drift that is found."""
    draw = random.Random(seed)
    drift = InputDrift(reference, 50, level, seed)
    sizes = [before(draw) for _ in range(n_before)] + [after(draw) for _ in range(n_after)]
    return [(i, name) for i, size in enumerate(sizes) for name in drift.record(size)]


@pytest.mark.parametrize("draw", [one_image, one_or_two])
def test_requests_that_stay_alike_rarely_raise_an_alarm(draw):
    alarms = [found(draw, draw, seed=seed, level=0.2) for seed in range(40)]
    assert sum(map(bool, alarms)) <= 8


def test_a_second_image_is_found_within_a_few_requests():
    for seed in range(5):
        at = {name: i for i, name in found(one_image, two_images, seed=seed)}
        assert at.keys() == {"n_visual", "n_images"}
        assert all(60 <= i < 80 for i in at.values())


def test_smaller_images_and_longer_texts_are_found_too():
    assert {
        name for _, name in found(one_image, lambda d: RequestSize(64, 1, d.randint(5, 9)))
    } == {"n_visual"}
    assert {
        name for _, name in found(one_image, lambda d: RequestSize(144, 1, d.randint(30, 50)))
    } == {"n_text"}


def test_the_first_requests_are_judged_against_a_reference_that_was_given():
    draw = random.Random(1)
    reference = [one_image(draw) for _ in range(50)]
    assert not found(one_image, one_image, n_before=0, reference=reference)
    later = found(one_image, two_images, n_before=0, reference=reference)
    assert {name for _, name in later} == {"n_visual", "n_images"}
    assert all(i < 20 for i, _ in later)


@pytest.mark.parametrize("beams", [1, 2])
def test_sizes_are_read_from_a_report_row_by_row(beams):
    model = tiny_llava(n_layers=4)
    inputs = batch([prompt(3, 0, 4), prompt(2, 0, 3, 0, 5), prompt(7)])
    with apply(model, Plan((Cut(1, 0.5, "grid"),))) as handle, torch.no_grad():
        model.generate(**inputs, max_new_tokens=1, num_beams=beams, pad_token_id=0)
        assert sizes_of(inputs, handle.last) == [
            RequestSize(16, 1, 8),
            RequestSize(32, 2, 11),
            RequestSize(0, 0, 8),
        ]
    del inputs["attention_mask"]
    assert sizes_of(inputs, handle.last)[1] == RequestSize(32, 2, 11)


@pytest.mark.parametrize("n", [1, 14, 64])
def test_a_summary_of_any_number_of_inputs_rarely_raises_a_false_alarm(n):
    alarms = []
    for seed in range(40):
        draw = random.Random(seed)
        drift = InputDrift(InputSizes.of(one_or_two(draw) for _ in range(n)), 0, 0.2, seed)
        alarms.append(any(drift.record(one_or_two(draw)) for _ in range(80)))
    assert sum(alarms) <= 8


@pytest.mark.parametrize(("n", "most"), [(32, 12), (64, 8)])
def test_drift_from_a_summary_is_found_from_the_first_request_on(n, most):
    for seed in range(5):
        draw = random.Random(seed)
        drift = InputDrift(InputSizes.of(one_image(draw) for _ in range(n)), 0, 0.05, seed)
        found = {name: i for i in range(20) for name in drift.record(two_images(draw))}
        assert found.keys() == {"n_visual", "n_images"}
        assert max(found.values()) < most


@pytest.mark.parametrize("summary", [True, False])
def test_requests_without_images_count_only_beside_a_reference_with_some(summary):
    text = [RequestSize(0, 0, n % 9) for n in range(60)]
    for others, names in (([], set()), (text[:1], {"n_visual", "n_images"})):
        given = [RequestSize(576, 1, n % 9) for n in range(64)] + others
        drift = InputDrift(InputSizes.of(given) if summary else given, 0, 0.05, 0)
        assert {name for size in text for name in drift.record(size)} == names


def test_sizes_within_a_class_of_a_summary_are_no_drift():
    drift = InputDrift(InputSizes.of([RequestSize(576, 1, 40)] * 64), 0, 0.05, 0)
    assert not any(drift.record(RequestSize(600, 1, 41)) for _ in range(60))
