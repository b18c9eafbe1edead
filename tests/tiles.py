"""Prompts of tiny models that see an image as tiles of one size, as their processors write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tpcal.plans.laws import Case

PAD, BOS, IMAGE, VIDEO = 0, 1, 5, 6
START, END, NEWLINE, WHOLE = 7, 8, 9, 10
"""Around an image, between rows of tiles, before the overview."""
TILE = 12
"""First id of the markers of tiles."""
WORD, VOCAB = 30, 120
SIDE = 24
"""Pixels along a tile."""

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": None,
    "pad_token_id": PAD,
    "initializer_range": 0.1,
}
"""Text part of every config."""

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 4,
    "initializer_range": 0.1,
}
"""Vision part of most configs: 6 x 6 patches in a tile."""

Size = tuple[int, int]
"""Height and width of an image in pixels."""
Encoder = Callable[[Sequence[Image.Image]], tuple[list[list[int]], Mapping[str, Tensor]]]
"""From the images of a prompt to the tokens of each and the model's inputs."""


@dataclass(frozen=True)
class Writer:
    """Writes prompts the way one model's processor does."""

    encode: Encoder
    sizes: tuple[Size, Size, Size, Size] = ((24, 24), (24, 60), (50, 30), (72, 24))
    per_row: frozenset[str] = field(default_factory=frozenset)

    def prompt(self, *parts: int | Size, seed: int = 0) -> dict[str, Tensor]:
        """Model inputs of one prompt; a number is that many words, a size an image."""
        generator = torch.Generator().manual_seed(seed)
        pictures = [picture(*part, generator) for part in parts if isinstance(part, tuple)]
        written, inputs = self.encode(pictures) if pictures else ([], {})
        ids, images = [BOS], iter(written)
        for part in parts:
            ids += next(images) if isinstance(part, tuple) else words(part, generator)
        tokens = torch.tensor([ids])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **inputs}

    def rows(self) -> tuple[dict[str, Tensor], ...]:
        """An image; two of other sizes; none; a fourth size before longer text."""
        a, b, c, d = self.sizes
        return (
            self.prompt(3, a, 4, seed=0),
            self.prompt(2, b, 3, c, 5, seed=1),
            self.prompt(7, seed=2),
            self.prompt(1, d, 11, seed=3),
        )


def case(
    name: str, kind: type[Any], config: Any, attn: str | Mapping[str, str], writer: Writer
) -> Case:
    """A random model of this class with its prompts."""
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=attn).eval()
    return Case(name, model, writer.rows(), pad_id=PAD, per_row=writer.per_row)


def one_size(
    n_tokens: int, start: Sequence[int] = (START,), end: Sequence[int] = (END,)
) -> Encoder:
    """Every image becomes one tile of ``n_tokens`` tokens."""

    def encode(pictures: Sequence[Image.Image]) -> tuple[list[list[int]], dict[str, Tensor]]:
        tokens = [*start, *[IMAGE] * n_tokens, *end]
        return [tokens] * len(pictures), {"pixel_values": pixels(pictures, SIDE)}

    return encode


def pixels(pictures: Sequence[Image.Image], side: int) -> Tensor:
    """[n, 3, side, side] in -1..1."""
    resized = [np.asarray(image.resize((side, side))) for image in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture(height: int, width: int, generator: torch.Generator) -> Image.Image:
    """A smooth random picture, so that an overview looks like its tiles."""
    coarse = torch.randint(256, (5, 5, 3), dtype=torch.uint8, generator=generator).numpy()
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def sized(height: int, width: int) -> Image.Image:
    """The picture of this size, the same at every call."""
    return picture(height, width, torch.Generator().manual_seed(height * 1000 + width))


def words(n: int, generator: torch.Generator) -> list[int]:
    """Ids of ordinary text."""
    return torch.randint(WORD, VOCAB, (n,), generator=generator).tolist()
