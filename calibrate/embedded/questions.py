"""Questions about a layout, in groups; each has exactly one right answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tpcal.calibrate.embedded.layout import COLOURS, COLUMNS, ROWS, SHAPES, Layout, Shape

GROUPS: tuple[str, ...] = (
    "exist",
    "colour",
    "shape",
    "count",
    "digit",
    "letter",
    "sign",
    "where",
    "relation",
    "size",
    "background",
    "nearest",
    "at",
    "compare",
)

NEAREST_MARGIN = 1.25
"""Least ratio of the distances to the second nearest and to the nearest shape."""


@dataclass(frozen=True)
class Question:
    """A question, its only right answer, and the group it belongs to."""

    question: str
    answer: str
    group: str


def ask(layout: Layout, rng: np.random.Generator) -> tuple[Question, ...]:
    """The questions of every group that the layout allows, in the order of ``GROUPS``."""
    return tuple(
        Question(text, answer, group)
        for group in GROUPS
        for text, answer in _ASK[group](layout, rng)
    )


Pairs = Iterator[tuple[str, str]]


def _some(rng: np.random.Generator, shapes: tuple[Shape, ...], n: int) -> list[Shape]:
    return [shapes[i] for i in rng.permutation(len(shapes))[:n]]


def _name(layout: Layout, shape: Shape, rng: np.random.Generator) -> str:
    """A description that fits only this shape of the scene: by shape, by colour, or by both."""
    names = [f"{shape.colour} {shape.shape}"]
    if sum(s.shape == shape.shape for s in layout.shapes) == 1:
        names.append(shape.shape)
    if sum(s.colour == shape.colour for s in layout.shapes) == 1:
        names.append(f"{shape.colour} shape")
    return names[0] if rng.random() < 0.4 else names[rng.integers(len(names))]


def _cell(shape: Shape) -> str:
    return f"{ROWS[shape.row]} {COLUMNS[shape.column]}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _exist(layout: Layout, rng: np.random.Generator) -> Pairs:
    """Yes and no are equally frequent; most objects that are missing have a colour or a shape that
    occurs in the scene."""
    for _ in range(2):
        yes = rng.random() < 0.5
        form = rng.random()
        if form < 0.2:
            present, words = {s.shape for s in layout.shapes}, SHAPES
            noun = _pick(rng, [w for w in words if (w in present) == yes])
        elif form < 0.4:
            present, words = {s.colour for s in layout.shapes}, COLOURS
            noun = f"{_pick(rng, [w for w in words if (w in present) == yes])} shape"
        elif yes:
            shape = _some(rng, layout.shapes, 1)[0]
            noun = f"{shape.colour} {shape.shape}"
        else:
            noun = _absent(layout, rng)
        yield f"Is there {_article(noun)}?", "yes" if yes else "no"


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[rng.integers(len(words))]


def _absent(layout: Layout, rng: np.random.Generator) -> str:
    present = {(s.colour, s.shape) for s in layout.shapes}
    while True:
        colour, shape = COLOURS[rng.integers(8)], SHAPES[rng.integers(8)]
        hard = rng.random()
        if hard < 0.75:
            colour = _some(rng, layout.shapes, 1)[0].colour
        if hard > 0.35:
            shape = _some(rng, layout.shapes, 1)[0].shape
        if (colour, shape) not in present:
            return f"{colour} {shape}"


def _colour(layout: Layout, rng: np.random.Generator) -> Pairs:
    counts = Counter(s.shape for s in layout.shapes)
    single = tuple(s for s in layout.shapes if counts[s.shape] == 1)
    for shape in _some(rng, single, 1):
        yield f"What colour is the {shape.shape}?", shape.colour


def _shape(layout: Layout, rng: np.random.Generator) -> Pairs:
    counts = Counter(s.colour for s in layout.shapes)
    single = tuple(s for s in layout.shapes if counts[s.colour] == 1)
    for shape in _some(rng, single, 1):
        yield f"Which shape is {shape.colour}?", shape.shape


def _count(layout: Layout, rng: np.random.Generator) -> Pairs:
    """The answer is drawn first, evenly among the numbers that occur in the scene."""
    shapes = Counter(s.shape for s in layout.shapes)
    colours = Counter(s.colour for s in layout.shapes)
    options: dict[int, list[str]] = {len(layout.shapes): ["shapes"]}
    for word in SHAPES:
        options.setdefault(shapes[word], []).append(_plural(word))
    for word in COLOURS:
        options.setdefault(colours[word], []).append(f"{word} shapes")
    for n in rng.permutation(sorted(options))[:2]:
        yield f"How many {_pick(rng, options[n])} are there?", str(n)


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"


def _digit(layout: Layout, rng: np.random.Generator) -> Pairs:
    if glyph := layout.glyph("digit"):
        yield "Which digit stands alone?", glyph.text


def _letter(layout: Layout, rng: np.random.Generator) -> Pairs:
    if glyph := layout.glyph("letter"):
        yield "Which letter stands alone?", glyph.text


def _sign(layout: Layout, rng: np.random.Generator) -> Pairs:
    if glyph := layout.glyph("sign"):
        yield "What does the sign say?", " ".join(glyph.text)


def _where(layout: Layout, rng: np.random.Generator) -> Pairs:
    for shape in _some(rng, layout.shapes, 2):
        yield f"Where is the {_name(layout, shape, rng)}?", _cell(shape)


def _relation(layout: Layout, rng: np.random.Generator) -> Pairs:
    """Two shapes of one row or column; the side is drawn first, so all are equally frequent."""
    sides: dict[str, list[tuple[Shape, Shape]]] = {}
    for one in layout.shapes:
        for other in layout.shapes:
            if side := _side(one, other):
                sides.setdefault(side, []).append((one, other))
    for side in rng.permutation(sorted(sides))[:2]:
        one, other = sides[side][rng.integers(len(sides[side]))]
        of, what = _name(layout, other, rng), _name(layout, one, rng)
        yield f"On which side of the {of} is the {what}?", str(side)


def _side(one: Shape, other: Shape) -> str:
    if one.row == other.row and one.column != other.column:
        return "left" if one.column < other.column else "right"
    if one.column == other.column and one.row != other.row:
        return "above" if one.row < other.row else "below"
    return ""


def _size(layout: Layout, rng: np.random.Generator) -> Pairs:
    for shape in _some(rng, layout.shapes, 1):
        answer = "large" if shape.large else "small"
        yield f"Is the {_name(layout, shape, rng)} large or small?", answer


def _background(layout: Layout, rng: np.random.Generator) -> Pairs:
    yield "What is the background?", layout.background


def _nearest(layout: Layout, rng: np.random.Generator) -> Pairs:
    n_asked = 0
    for shape in _some(rng, layout.shapes, len(layout.shapes)):
        others = sorted(
            (math.hypot(s.x - shape.x, s.y - shape.y), s.shape)
            for s in layout.shapes
            if s is not shape
        )
        clear = len(others) > 1 and others[1][0] >= NEAREST_MARGIN * others[0][0]
        if clear and n_asked < 2:
            n_asked += 1
            yield f"Which shape is nearest to the {_name(layout, shape, rng)}?", others[0][1]


def _at(layout: Layout, rng: np.random.Generator) -> Pairs:
    for shape in _some(rng, layout.shapes, 2):
        yield f"Which shape is at the {_cell(shape)}?", shape.shape


def _compare(layout: Layout, rng: np.random.Generator) -> Pairs:
    counts = Counter(s.colour for s in layout.shapes)
    pairs = [(a, b) for a in sorted(counts) for b in sorted(counts) if counts[a] > counts[b]]
    if pairs:
        more, fewer = pairs[rng.integers(len(pairs))]
        first, second = (more, fewer) if rng.random() < 0.5 else (fewer, more)
        yield f"Are there more {first} or {second} shapes?", more


_ASK = {
    "exist": _exist,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "digit": _digit,
    "letter": _letter,
    "sign": _sign,
    "where": _where,
    "relation": _relation,
    "size": _size,
    "background": _background,
    "nearest": _nearest,
    "at": _at,
    "compare": _compare,
}
