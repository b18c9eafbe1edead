"""Layouts of scenes: objects and their places, drawn from a seed and not painted yet.

A scene is a 3 x 3 grid of cells of 32 pixels. An object stays well inside its cell, so that
"where", "left of" and "at" have one clear answer. No two shapes of a scene have the same colour
and shape, so that "the red circle" names one object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 96
CELL = 32
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("plain", "stripes", "checks", "dots", "waves")
DIGITS = tuple("0123456789")
LETTERS = tuple("ACEFHKLMPTXY")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")

GLYPH_SHARE = 0.45
"""Share of scenes with a digit; letters and signs have the same share, independently."""


@dataclass(frozen=True)
class Shape:
    """A coloured shape: its centre in pixels, its cell, and its diameter in pixels."""

    shape: str
    colour: str
    large: bool
    row: int
    column: int
    x: float
    y: float
    diameter: float


@dataclass(frozen=True)
class Glyphs:
    """A digit, a letter, or a sign's three characters: its centre in pixels and its height."""

    kind: str
    text: str
    x: float
    y: float
    height: int


@dataclass(frozen=True)
class Layout:
    """The background, shapes and glyphs of a scene."""

    background: str
    shapes: tuple[Shape, ...]
    glyphs: tuple[Glyphs, ...]

    def glyph(self, kind: str) -> Glyphs | None:
        """The digit, letter or sign of the scene, if it has one."""
        return next((g for g in self.glyphs if g.kind == kind), None)


def draw_layout(rng: np.random.Generator, *, easy: bool = False) -> Layout:
    """A random layout of 2-7 shapes (easy: 2-3), some with a digit, a letter or a sign."""
    # The sign comes first, because it needs two neighbouring cells; each further glyph takes a
    # free cell, and the shapes share what is left.
    share = GLYPH_SHARE / 3 if easy else GLYPH_SHARE
    has_digit, has_letter, has_sign = rng.random(3) < share
    free = [(row, column) for row in range(3) for column in range(3)]
    glyphs: list[Glyphs] = []
    if has_sign:
        glyphs.append(_sign(rng, free))
    for wanted, kind, alphabet in (
        (has_digit, "digit", DIGITS),
        (has_letter, "letter", LETTERS),
    ):
        if wanted:
            glyphs.append(_single(rng, kind, alphabet, free))
    most = min(3 if easy else 7, len(free))
    n_shapes = int(rng.integers(2, most + 1))
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Layout(background, _shapes(rng, n_shapes, free), tuple(glyphs))


def _sign(rng: np.random.Generator, free: list[tuple[int, int]]) -> Glyphs:
    row, column = int(rng.integers(3)), int(rng.integers(2))
    free.remove((row, column))
    free.remove((row, column + 1))
    alphabet = LETTERS + DIGITS
    text = "".join(alphabet[i] for i in rng.integers(len(alphabet), size=3))
    x = (column + 1) * CELL + rng.uniform(-5, 5)
    return Glyphs("sign", text, x, _middle(rng, row, 4), 14)


def _single(
    rng: np.random.Generator, kind: str, alphabet: tuple[str, ...], free: list[tuple[int, int]]
) -> Glyphs:
    row, column = free.pop(rng.integers(len(free)))
    text = alphabet[rng.integers(len(alphabet))]
    return Glyphs(kind, text, _middle(rng, column, 5), _middle(rng, row, 5), 18)


def _middle(rng: np.random.Generator, cell: int, slack: float) -> float:
    return (cell + 0.5) * CELL + rng.uniform(-slack, slack)


def _shapes(
    rng: np.random.Generator, n_shapes: int, free: list[tuple[int, int]]
) -> tuple[Shape, ...]:
    cells = [free[i] for i in rng.permutation(len(free))[:n_shapes]]
    looks = _looks(rng, n_shapes)
    shapes = []
    for (row, column), (shape, colour) in zip(cells, looks, strict=True):
        large = bool(rng.random() < 0.5)
        diameter = rng.uniform(22, 26) if large else rng.uniform(13, 16)
        slack = 15.5 - diameter / 2
        x, y = _middle(rng, column, slack), _middle(rng, row, slack)
        shapes.append(Shape(shape, colour, large, row, column, x, y, diameter))
    return tuple(shapes)


def _looks(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """[n] distinct (shape, colour) pairs.

    Some scenes prefer one shape or colour, so that questions for counts have answers above 1.
    """
    favourite_shape, favourite_colour = rng.integers(8, size=2)
    share_shape, share_colour = rng.choice((0.0, 0.3, 0.7), size=2)
    looks: dict[tuple[str, str], None] = {}
    while len(looks) < n:
        shape, colour = rng.integers(8, size=2)
        keep_shape, keep_colour = rng.random(2)
        shape = favourite_shape if keep_shape < share_shape else shape
        colour = favourite_colour if keep_colour < share_colour else colour
        looks[SHAPES[shape], COLOURS[colour]] = None
    return list(looks)
