"""Painting of a layout: 96 x 96 RGB, with a textured grey background, shapes, glyphs and noise."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tpcal.calibrate.embedded.layout import SIDE, Glyphs, Layout, Shape

SCALE = 2
"""Factor of supersampling: scenes are painted at this many times the side, then averaged."""

_RGB = {
    "red": (215, 35, 35),
    "orange": (240, 135, 20),
    "yellow": (240, 225, 40),
    "green": (35, 150, 50),
    "cyan": (50, 215, 225),
    "blue": (40, 70, 215),
    "purple": (125, 40, 165),
    "pink": (250, 145, 200),
}


def paint(layout: Layout, rng: np.random.Generator) -> Image.Image:
    """The layout as a 96 x 96 RGB image; ``rng`` draws texture, tints and noise only."""
    # In this order, because the order of random draws fixes the pixels of a seed: background,
    # shapes with a tint each, glyphs; then the average of `SCALE` x `SCALE` pixels, and noise.
    canvas = Image.fromarray(_background(layout.background, rng))
    canvas = canvas.resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for shape in layout.shapes:
        tint = rng.integers(-14, 15, size=3)
        rgb = tuple(int(v) for v in np.clip(_RGB[shape.colour] + tint, 0, 255))
        draw_shape(pen, shape, rgb, SCALE)
    for glyphs in layout.glyphs:
        _draw_glyphs(pen, glyphs, rng)
    pixels = np.asarray(canvas.reduce(SCALE), dtype=np.float32)
    pixels = pixels + rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32) * 5
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(name: str, rng: np.random.Generator) -> np.ndarray:
    """[96, 96, 3] uint8, a texture of nearly grey pixels."""
    # A pattern with values in [-1, 1], periodic in a rotated or shifted coordinate, becomes
    # grey = mean + contrast * pattern, with a slight tint of the three channels.
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle, phase, period = rng.uniform(0, math.pi), rng.uniform(0, 10, 2), rng.uniform(8, 13)
    u = x * math.cos(angle) + y * math.sin(angle) + phase[0]
    wave = 2 * math.pi / period
    if name == "stripes":
        pattern = np.sign(np.sin(u * wave))
    elif name == "checks":
        pattern = np.sign(np.sin((x + phase[0]) * wave) * np.sin((y + phase[1]) * wave))
    elif name == "dots":
        pattern = np.cos((x + phase[0]) * wave) + np.cos((y + phase[1]) * wave) > 0.9
        pattern = pattern * 2.0 - 1
    elif name == "waves":
        bend = 4 * np.sin((y + phase[1]) * 2 * math.pi / 24)
        pattern = np.sin((x + bend + phase[0]) * wave)
    else:
        pattern = np.zeros_like(x)
    grey = rng.uniform(95, 165) + rng.uniform(13, 20) * pattern
    return np.clip(grey[..., None] + rng.uniform(-8, 8, size=3), 0, 255).astype(np.uint8)


def draw_shape(
    pen: ImageDraw.ImageDraw, shape: Shape, fill: int | tuple[int, ...], scale: float
) -> None:
    """Draws one shape with a flat fill; ``scale`` is canvas pixels per scene pixel."""
    x, y, r = shape.x * scale, shape.y * scale, shape.diameter / 2 * scale
    if shape.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape.shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(1, round(r * 0.42)))
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in _outline(shape.shape)], fill=fill)


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    if shape == "star":
        turns = [(math.pi * i / 5, 1.08 if i % 2 == 0 else 0.45) for i in range(10)]
        return tuple((r * math.sin(a), -r * math.cos(a)) for a, r in turns)
    a = 0.3
    return {
        "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        "triangle": ((0, -1), (1, 0.85), (-1, 0.85)),
        "diamond": ((0, -1.05), (0.75, 0), (0, 1.05), (-0.75, 0)),
        "cross": (
            *((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)),
            *((a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)),
        ),
        "arrow": ((-1, -a), (0, -a), (0, -0.9), (1, 0), (0, 0.9), (0, a), (-1, a)),
    }[shape]


def glyph_boxes(glyphs: Glyphs) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of every character, in scene pixels."""
    step = glyphs.height * 0.95
    left = glyphs.x - step * len(glyphs.text) / 2
    top = glyphs.y - glyphs.height / 2
    return [
        (left + i * step, top, left + (i + 1) * step, top + glyphs.height)
        for i in range(len(glyphs.text))
    ]


def _draw_glyphs(pen: ImageDraw.ImageDraw, glyphs: Glyphs, rng: np.random.Generator) -> None:
    ink, paper = (20, 20, 20), (245, 245, 240)
    boxes = glyph_boxes(glyphs)
    if glyphs.kind == "sign":
        edge = (boxes[0][0] - 2, boxes[0][1] - 2.5, boxes[-1][2] + 2, boxes[-1][3] + 2.5)
        pen.rectangle([v * SCALE for v in edge], fill=paper, outline=ink, width=SCALE)
    elif rng.random() < 0.5:
        ink, paper = paper, ink
    font = _font(round(glyphs.height * 1.3 * SCALE))
    for character, (left, top, right, bottom) in zip(glyphs.text, boxes, strict=True):
        at = ((left + right) / 2 * SCALE, (top + bottom) / 2 * SCALE)
        halo = 0 if glyphs.kind == "sign" else SCALE
        pen.text(at, character, ink, font, "mm", stroke_width=halo, stroke_fill=paper)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
