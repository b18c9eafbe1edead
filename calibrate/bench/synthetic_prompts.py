"""Synthetic prompts for a model with a processor: images of noise and random words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from tpcal.calibrate.bench.prompt_sizes import PromptSize
from tpcal.calibrate.inputs.batches import n_tokens, prompt_inputs
from tpcal.calibrate.inputs.models import Loaded
from tpcal.calibrate.inputs.sample import Sample

WORDS = (
    *("what", "which", "where", "how", "many", "is", "are", "the", "a", "of", "in", "behind"),
    *("left", "right", "small", "large", "red", "green", "blue", "picture", "street", "table"),
    *("person", "dog", "tree", "sign", "word", "number", "chart", "line", "colour", "shape"),
)


SIDES = (336, 448, 672, 896, 1120, 1344, 1792, 2240)
"""Sides of square images, in pixels."""


def inputs_for(loaded: Loaded, shape: PromptSize, image_px: int) -> dict[str, Any]:
    """Left-padded inputs of `generate`; no two rows are alike.

    Args:
        loaded: The model.
        shape: Sizes of the prompts; texts come as close to them as whole words and the chat format
            allow.
        image_px: Pixels along each side of an image, before the processor scales it.
    """
    rng = np.random.default_rng(0)
    samples = []
    for row, n_text in enumerate(shape.text_lengths):
        images = tuple(_noise(image_px, rng) for _ in range(shape.n_images))
        words = [str(word) for word in rng.choice(WORDS, max(1, n_text))]
        n_words = _fitting(loaded, images, words, n_text)
        samples.append(Sample(str(row), images, " ".join(words[:n_words])))
    return prompt_inputs(loaded.processor, samples, loaded.model)


def nearest_side(loaded: Loaded, n_tokens: float) -> int:
    """The one of `SIDES` at which an image has about ``n_tokens`` visual tokens.

    If several come equally close, it is the smallest.
    """

    def distance(px: int) -> float:
        image = Image.new("RGB", (px, px))
        return abs(_n_visual(loaded, Sample("", (image,), "what")) - n_tokens)

    return min(SIDES, key=distance)


def _noise(px: int, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (px, px, 3), dtype=np.uint8))


def _fitting(
    loaded: Loaded, images: tuple[Image.Image, ...], words: Sequence[str], n_text: int
) -> int:
    """Number of words, at least one, that make a prompt of about ``n_text`` text tokens."""
    # tokens(n words) is taken as a line through tokens(1) and tokens(all).
    fixed = _n_text(loaded, images, words[:1])
    per_word = (_n_text(loaded, images, words) - fixed) / max(1, len(words) - 1)
    n_words = 1 + int((n_text - fixed) / per_word) if per_word else 1
    return min(max(1, n_words), len(words))


def _n_text(loaded: Loaded, images: tuple[Image.Image, ...], words: Sequence[str]) -> int:
    sample = Sample("", images, " ".join(words))
    return _counts(loaded, sample)[1]


def _n_visual(loaded: Loaded, sample: Sample) -> int:
    return _counts(loaded, sample)[0]


def _counts(loaded: Loaded, sample: Sample) -> tuple[int, int]:
    """Visual and text tokens of a prompt."""
    visual, text = n_tokens(loaded, prompt_inputs(loaded.processor, [sample], loaded.model))
    return visual[0], text[0]
