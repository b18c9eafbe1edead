"""What every patch of a scene shows: the tower's training labels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tpcal.calibrate.embedded.layout import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    SIDE,
    Layout,
)
from tpcal.calibrate.embedded.painting import draw_shape, glyph_boxes

LABELS: dict[str, int] = {
    "kind": 1 + len(SHAPES) + 3,
    "colour": 1 + len(COLOURS),
    "size": 3,
    "glyph": 1 + len(LETTERS) + len(DIGITS),
    "row": 4,
    "column": 4,
    "centre": 2,
    "place": 4,
    "background": len(BACKGROUNDS),
}
"""Labels and their numbers of classes.

Class 0 is "nothing here", except for the background. ``place`` counts a sign's characters from 1.
"""

_COVER = 0.2
"""A thing is a patch's label if it covers at least this share of the patch."""


def patch_labels(layout: Layout, patch: int) -> np.ndarray:
    """[N, labels] uint8 labels of the patches, row by row, in the order of ``LABELS``."""
    rows = [np.zeros(len(LABELS), dtype=np.uint8)]
    canvas = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(canvas)
    centres: dict[tuple[int, int], int] = {}
    for shape in layout.shapes:
        draw_shape(pen, shape, len(rows), 1)
        centres[int(shape.y) // patch, int(shape.x) // patch] = len(rows)
        kind, colour = 1 + SHAPES.index(shape.shape), 1 + COLOURS.index(shape.colour)
        rows.append(_row(kind, colour, 1 + shape.large, 0, shape.x, shape.y))
    for glyphs in layout.glyphs:
        kind = 1 + len(SHAPES) + ("digit", "letter", "sign").index(glyphs.kind)
        for place, (character, box) in enumerate(
            zip(glyphs.text, glyph_boxes(glyphs), strict=True), 1
        ):
            pen.rectangle(box, fill=len(rows))
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            centres[int(y) // patch, int(x) // patch] = len(rows)
            glyph = 1 + (LETTERS + DIGITS).index(character)
            row = _row(kind, 0, 0, glyph, x, y)
            row[7] = place if glyphs.kind == "sign" else 0
            rows.append(row)
    things = _dominant(np.asarray(canvas), len(rows), patch)
    grid = SIDE // patch
    for centre, thing in centres.items():
        things[centre] = thing
    labels = np.stack(rows)[things]  # [grid, grid, labels]
    for centre in centres:
        labels[(*centre, 6)] = 1
    labels[..., 8] = BACKGROUNDS.index(layout.background)
    return labels.reshape(grid * grid, len(LABELS))


def _row(kind: int, colour: int, size: int, glyph: int, x: float, y: float) -> np.ndarray:
    row, column = 1 + int(y // CELL), 1 + int(x // CELL)
    return np.array([kind, colour, size, glyph, row, column, 0, 0, 0], dtype=np.uint8)


def _dominant(things: np.ndarray, n_things: int, patch: int) -> np.ndarray:
    """[grid, grid] the thing that covers most of each patch, 0 where none covers enough."""
    grid = SIDE // patch
    tiles = things.reshape(grid, patch, grid, patch).swapaxes(1, 2).reshape(grid, grid, -1)
    counts = (tiles[..., None] == np.arange(n_things)).sum(axis=2)
    counts[..., 0] = 0
    best = counts.argmax(axis=2)
    return np.where(counts.max(axis=2) >= _COVER * patch * patch, best, 0)
