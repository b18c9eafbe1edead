"""What a selector gets of the images of a step: each image is a row of its own.

Selectors treat every row as if it were alone. An image therefore keeps the same tokens whatever
else is in the prompt or runs in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpcal.integrations.vllm.question import PromptColumns
from tpcal.plans.selectors.base import Counts, Tokens


@dataclass(frozen=True)
class ImageColumns:
    """An image at a cut."""

    columns: np.ndarray
    """[n] int64 columns of its tokens that are still there, ascending."""
    ranks: np.ndarray
    """[n] int64 rank of each of them among the image's original tokens, ascending."""
    n_original: int
    """Number of the original tokens."""
    n_keep: int
    """Number of tokens that the cut leaves."""
    prompt: PromptColumns | None = None
    """Its prompt, if the plan looks at the question."""

    @property
    def n_alive(self) -> int:
        """Number of its tokens that are still there."""
        return len(self.ranks)


MOST_NUMBERS = 1 << 27
"""Numbers that the tables of one call of a selector have at most, if it has several images."""


def parts(images: Sequence[ImageColumns], width: int) -> list[list[ImageColumns]]:
    """The images in parts, one for each call of a selector.

    All images of a part are filled up to its longest one, so they have about the same length: the
    longest one is at most twice as long. A part takes as many as keep its tables small. Rows are
    chosen alone, so parts change no choice.

    Args:
        images: The images of a cut.
        width: Numbers of a state, D.
    """
    found: list[list[ImageColumns]] = []
    for image in sorted(images, key=lambda image: -image.n_alive):
        if found and _fits(image, found[-1], width):
            found[-1].append(image)
        else:
            found.append([image])
    return found


def _fits(image: ImageColumns, part: Sequence[ImageColumns], width: int) -> bool:
    n_tokens, every = part[0].n_alive, [*part, image]
    n_text = max(0 if one.prompt is None else len(one.prompt.places) for one in every)
    numbers = len(every) * (n_tokens * (n_tokens + width) + n_text * width)
    return n_tokens <= 2 * image.n_alive and numbers <= MOST_NUMBERS


def tokens_of(images: Sequence[ImageColumns], layer: int, states: Tensor) -> tuple[Tokens, Tensor]:
    """What a selector gets, and [B, N] int64 column of each token; filler repeats column 0.

    Args:
        images: The B images.
        layer: Layer of the cut.
        states: [m, D] states of all tokens that enter the layer.
    """
    n_tokens = max(image.n_alive for image in images)
    index = np.full((len(images), n_tokens), -1, dtype=np.int64)
    columns = np.zeros_like(index)
    for row, image in enumerate(images):
        index[row, : image.n_alive] = image.ranks
        columns[row, : image.n_alive] = image.columns
    ranks, at = (torch.from_numpy(array).to(states.device) for array in (index, columns))
    valid = ranks >= 0
    side = torch.tensor([math.isqrt(image.n_original) for image in images], device=states.device)
    shape = side[:, None, None].expand(*ranks.shape, 2)
    tokens = Tokens(
        layer=layer,
        hidden=states[at],
        valid=valid,
        index=ranks,
        image=torch.where(valid, 0, -1),
        n_original=torch.tensor([image.n_original for image in images], device=states.device),
        # Selectors that read the grid are offered for square images only (`support`).
        grid_row=torch.where(valid, ranks // side[:, None], -1),
        grid_col=torch.where(valid, ranks % side[:, None], -1),
        grid_shape=shape,
        counts=Counts(
            tuple(image.n_alive for image in images),
            tuple(image.n_keep for image in images),
            n_images=(1,) * len(images),
            n_text=(0,) * len(images),
        ),
    )
    return tokens, at
