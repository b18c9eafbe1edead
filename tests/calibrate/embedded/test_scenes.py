"""The generator: deterministic, right answers, disjoint splits, balanced groups."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from tpcal.calibrate.embedded.layout import Glyphs, Layout, Shape
from tpcal.calibrate.embedded.questions import GROUPS, ask
from tpcal.calibrate.embedded.scenes import (
    SPLITS,
    first_seed,
    plan_scene,
    samples,
    scene,
)


def shape(
    name: str, colour: str, row: int, column: int, *, large: bool = True, x: float = 0
) -> Shape:
    """A shape in the middle of a cell, ``x`` pixels right of it."""
    return Shape(name, colour, large, row, column, 32 * column + 16 + x, 32 * row + 16, 24)


CONSTRUCTED = Layout(
    background="dots",
    shapes=(
        shape("circle", "red", 0, 0),
        shape("circle", "blue", 0, 1, large=False),
        shape("star", "red", 2, 0),
    ),
    glyphs=(
        Glyphs("digit", "7", 80, 16, 18),
        Glyphs("letter", "K", 80, 80, 18),
        Glyphs("sign", "A5C", 64, 48, 14),
    ),
)


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Everything that can be asked about the constructed scene."""
    found: dict[str, str] = {}
    for seed in range(400):
        for q in ask(CONSTRUCTED, np.random.default_rng(seed)):
            assert found.setdefault(q.question, q.answer) == q.answer, q.question
    return found


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is there a red circle?", "yes"),
        ("Is there a blue star?", "no"),
        ("Is there an arrow?", "no"),
        ("Is there a blue shape?", "yes"),
        ("What colour is the star?", "red"),
        ("Which shape is blue?", "circle"),
        ("How many shapes are there?", "3"),
        ("How many circles are there?", "2"),
        ("How many red shapes are there?", "2"),
        ("How many crosses are there?", "0"),
        ("Which digit stands alone?", "7"),
        ("Which letter stands alone?", "K"),
        ("What does the sign say?", "A 5 C"),
        ("Where is the star?", "bottom left"),
        ("Where is the blue circle?", "top centre"),
        ("On which side of the red circle is the blue shape?", "right"),
        ("On which side of the star is the red circle?", "above"),
        ("Is the blue circle large or small?", "small"),
        ("What is the background?", "dots"),
        ("Which shape is nearest to the red circle?", "circle"),
        ("Which shape is at the bottom left?", "star"),
        ("Are there more red or blue shapes?", "red"),
        ("Are there more blue or red shapes?", "red"),
    ],
)
def test_constructed_scene_is_answered_rightly(
    answers: dict[str, str], question: str, answer: str
) -> None:
    assert answers[question] == answer


@pytest.mark.parametrize(
    "question",
    [
        "What colour is the circle?",  # two circles
        "Which shape is red?",  # two red shapes
        "Where is the circle?",
        "On which side of the star is the blue circle?",  # neither in a row nor in a column
    ],
)
def test_what_has_no_single_answer_is_not_asked(answers: dict[str, str], question: str) -> None:
    assert question not in answers


def test_nearest_is_not_asked_when_two_are_about_as_near() -> None:
    middle = shape("star", "pink", 1, 1)
    layout = Layout(
        "plain", (middle, shape("ring", "red", 1, 0), shape("cross", "red", 1, 2, x=-3)), ()
    )
    asked = [q.question for s in range(50) for q in ask(layout, np.random.default_rng(s))]
    assert not [q for q in asked if q.startswith("Which shape is nearest to the star")]


def test_a_seed_always_gives_the_same_scene() -> None:
    one, other = scene(7), scene(7)
    assert one.questions == other.questions
    assert one.image.tobytes() == other.image.tobytes()
    assert scene(8).image.tobytes() != one.image.tobytes()


def test_easy_scenes_hold_two_or_three_shapes() -> None:
    assert {len(plan_scene(s, easy=True)[0].shapes) for s in range(100)} == {2, 3}


def test_images_are_of_the_models_size() -> None:
    assert scene(0).image.size == (96, 96)
    assert scene(0).image.mode == "RGB"


def test_scene_seeds_of_splits_and_seeds_do_not_meet() -> None:
    starts = [first_seed(split, seed) for split in SPLITS for seed in (0, 1, 999_999)]
    assert starts == sorted(starts)
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 1_000_000


def test_no_image_is_in_two_splits() -> None:
    images = [s.image.tobytes() for split in SPLITS for s in samples(split, 56)]
    assert len(set(images)) == len(images)


def test_samples_are_balanced_over_groups() -> None:
    counts = Counter(s.group for s in samples("eval", 3 * len(GROUPS)))
    assert counts == dict.fromkeys(GROUPS, 3)


def test_fewer_samples_are_the_first_of_more() -> None:
    few, more = samples("eval", 20), samples("eval", 30)
    assert [(s.id, s.question, s.answer) for s in few] == [
        (s.id, s.question, s.answer) for s in more[:20]
    ]
    assert few[12].id == "eval-000012"
    assert samples("eval", 1, seed=3)[0].id == "eval-3-000000"


def test_yes_and_no_are_equally_frequent() -> None:
    found = Counter(q.answer for s in range(2000) for q in plan_scene(s)[1] if q.group == "exist")
    assert 0.47 < found["yes"] / found.total() < 0.53


def test_sides_sizes_and_cells_are_about_equally_frequent() -> None:
    found: dict[str, Counter[str]] = {"relation": Counter(), "size": Counter(), "where": Counter()}
    for number in range(2000):
        for q in plan_scene(number)[1]:
            if q.group in found:
                found[q.group][q.answer] += 1
    for group, counts in found.items():
        assert max(counts.values()) < 1.35 * min(counts.values()), group


def test_shapes_stay_inside_their_cells() -> None:
    for number in range(200):
        for s in plan_scene(number)[0].shapes:
            assert abs(s.x - 32 * s.column - 16) + s.diameter / 2 <= 16
            assert abs(s.y - 32 * s.row - 16) + s.diameter / 2 <= 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 1, 0), r"split must be one of train, calibration, eval, test; got 'dev'\."),
        (("eval", -1, 0), r"n must be in \[0, 250000\]; got -1\."),
        (("eval", 1, -2), r"seed must be in \[0, 1000000\); got -2\."),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, int, int], message: str) -> None:
    split, n, seed = arguments
    with pytest.raises(ValueError, match=message):
        samples(split, n, seed=seed)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, tpcal.calibrate.embedded as e; e.FOLDER; e.samples; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
