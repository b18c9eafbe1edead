"""Procedural scenes with questions, made from seeds: the only data of the embedded model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tpcal.calibrate.embedded.layout import Layout, draw_layout
from tpcal.calibrate.embedded.painting import paint
from tpcal.calibrate.embedded.questions import GROUPS, Question, ask

SPLITS: tuple[str, ...] = ("train", "calibration", "eval", "test")
SPLIT_SPAN = 10**12
SEED_SPAN = 10**6
"""Scene numbers of a split start at its index * `SPLIT_SPAN`; those of a ``seed`` of the split
start ``seed`` * `SEED_SPAN` after that. So splits and seeds never share a scene."""


@dataclass(frozen=True)
class Scene:
    """An image and the questions about it."""

    image: Image.Image
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class EmbeddedSample:
    """One image with one question; ``id`` is unique within a split and never changes."""

    image: Image.Image
    question: str
    answer: str
    group: str
    id: str


def scene(seed: int, *, easy: bool = False) -> Scene:
    """The scene of a seed; the same seed always gives the same pixels and questions.

    Args:
        seed: Any non-negative integer.
        easy: Whether to draw only 2-3 shapes and few glyphs, as in the first part of the training.
    """
    layout, questions = plan_scene(seed, easy=easy)
    return Scene(paint_scene(seed, layout), questions)


def plan_scene(seed: int, *, easy: bool = False) -> tuple[Layout, tuple[Question, ...]]:
    """The layout and the questions of a seed, without painting them."""
    rng = np.random.default_rng((seed, int(easy)))
    layout = draw_layout(rng, easy=easy)
    return layout, ask(layout, rng)


def paint_scene(seed: int, layout: Layout) -> Image.Image:
    """The pixels of a seed's layout."""
    return paint(layout, np.random.default_rng((seed, 2)))


def samples(split: str, n: int, *, seed: int = 0) -> list[EmbeddedSample]:
    """``n`` samples, each of its own scene, spread over ``GROUPS`` as evenly as ``n`` allows.

    Groups take turns, one sample each, so that the first m of n samples are those of a call with
    m.

    Args:
        split: One of ``SPLITS``; no scene is in two splits.
        n: Number of samples, at most 250,000.
        seed: Chooses other scenes of the same split, from 0 to below a million.

    Raises:
        ValueError: There is no such split, or ``n`` or ``seed`` is out of range.

    Example:
        >>> from tpcal.calibrate.embedded.scenes import samples
        >>> [sample.group for sample in samples("eval", 3)]
        ['exist', 'colour', 'shape']
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}.")
    if not 0 <= n <= SEED_SPAN // 4:
        raise ValueError(f"n must be in [0, {SEED_SPAN // 4}]; got {n}.")
    if not 0 <= seed < SEED_SPAN:
        raise ValueError(f"seed must be in [0, {SEED_SPAN}); got {seed}.")
    number = first_seed(split, seed)
    found = []
    for i in range(n):
        group = GROUPS[i % len(GROUPS)]
        number, layout, question = _next_with(group, number)
        image = paint_scene(number, layout)
        name = f"{split}-{i:06d}" if seed == 0 else f"{split}-{seed}-{i:06d}"
        found.append(EmbeddedSample(image, question.question, question.answer, group, name))
        number += 1
    return found


def first_seed(split: str, seed: int = 0) -> int:
    """The first scene number of a split and seed."""
    return SPLITS.index(split) * SPLIT_SPAN + seed * SEED_SPAN


def _next_with(group: str, number: int) -> tuple[int, Layout, Question]:
    """The first scene from ``number`` on that has a question of the group.

    Returns its number, its layout and its first question of the group.
    """
    while True:
        layout, questions = plan_scene(number)
        for question in questions:
            if question.group == group:
                return number, layout, question
        number += 1


__all__ = ["GROUPS", "SPLITS", "EmbeddedSample", "Question", "Scene", "samples", "scene"]
