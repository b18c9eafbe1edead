"""Prompts of tiny models in LLaVA's manner: pictures through the model's own image processor.

Video processors need torchvision, so videos are random frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tpcal.plans.laws import Case

PAD, BOS = 0, 1
IMAGE, VIDEO = 5, 6
BREAK, END = 7, 8
"""Stand behind the rows of Pixtral's images."""
WORD = 16
"""First id of ordinary text."""
VOCAB = 120
SIDE, PATCH = 16, 4
"""Pixels of a tower with one image size, and of its patches: 4 x 4 tokens."""
N_TOWER = (SIDE // PATCH) ** 2

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
    "initializer_range": 0.15,
}
"""Text part of every config."""
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
"""Vision part of every config."""
PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
"""Height and width of the pictures that tiles are cut from."""

Size = tuple[int, int]
"""Height and width of a picture in pixels."""
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Writer:
    """Writes prompts the way one model's processor does."""

    processor: Any
    """Image processor."""
    layout: Callable[[Inputs], list[list[int]]]
    """Token ids of each picture, from the image processor's output."""
    video: Callable[[Tensor], list[int]] | None = None
    """Token ids of a video, from its frames [1, T, 3, H, W]."""

    def prompt(self, *parts: int | Size, n_frames: int = 0, seed: int = 0) -> dict[str, Tensor]:
        """Model inputs of one prompt, a batch of one.

        Args:
            parts: A number of words, or a picture of this size.
            n_frames: Length of a video behind the first part; 0: none.
            seed: For words and pixels.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = [part for part in parts if isinstance(part, tuple)]
        images = self._images(sizes, generator) if sizes else {}
        places = iter(self.layout(images) if sizes else [])
        video, frames = self._video(n_frames, generator) if n_frames else ([], {})
        ids = [BOS]
        for at, part in enumerate(parts):
            ids += next(places) if isinstance(part, tuple) else _words(part, generator)
            ids += video if at == 0 else []
        tokens = torch.tensor([ids])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **images, **frames}

    def _images(self, sizes: Sequence[Size], generator: torch.Generator) -> dict[str, Any]:
        pictures = [
            Image.fromarray(
                torch.randint(256, (h, w, 3), dtype=torch.uint8, generator=generator).numpy()
            )
            for h, w in sizes
        ]
        return dict(self.processor(images=[pictures], return_tensors="pt"))

    def _video(self, n_frames: int, generator: torch.Generator) -> tuple[list[int], Any]:
        assert self.video is not None
        frames = torch.randn(1, n_frames, 3, SIDE, SIDE, generator=generator)
        return self.video(frames), {"pixel_values_videos": frames}


def same(n: int) -> Callable[[Inputs], list[list[int]]]:
    """The layout of a tower whose every image is n tokens."""
    return lambda images: [[IMAGE] * n for _ in images["pixel_values"]]


def counted(model: Any) -> Callable[[Inputs], list[list[int]]]:
    """The layout of a model that tiles images, by the features it makes of them."""

    def layout(images: Inputs) -> list[list[int]]:
        with torch.no_grad():
            features = model.model.get_image_features(**images, return_dict=True).pooler_output
        return [[IMAGE] * len(tokens) for tokens in features]

    return layout


def in_rows(images: Inputs, patch: int) -> list[list[int]]:
    """Pixtral's layout: a token behind every row of patches, another behind the last."""
    ids = []
    for height, width in images["image_sizes"].tolist():
        row = [*[IMAGE] * (width // patch), BREAK]
        ids.append([*(row * (height // patch))[:-1], END])
    return ids


def rows(writer: Writer) -> tuple[dict[str, Tensor], ...]:
    """Four prompts: a picture; two of different shape; none; a fourth shape and longer text."""
    return (
        writer.prompt(3, (16, 24), 4, seed=0),
        writer.prompt(2, (40, 16), 3, (16, 16), 5, seed=1),
        writer.prompt(7, seed=2),
        writer.prompt(1, (32, 32), 11, seed=3),
    )


def videos(writer: Writer) -> tuple[dict[str, Tensor], ...]:
    """A prompt with a video, and one with a longer video and a picture."""
    return (
        writer.prompt(2, 4, n_frames=2, seed=4),
        writer.prompt(2, 3, (16, 24), 5, n_frames=2, seed=5),
    )


def random_model(kind: type[Any], config: Any, attn: str | dict[str, str]) -> Any:
    """A model of this class in evaluation mode."""
    torch.manual_seed(0)
    return kind._from_config(config, attn_implementation=attn).eval()


def case(name: str, model: Any, writer: Writer, *, with_videos: bool = False) -> Case:
    """The model with its prompts."""
    return Case(name, model, rows(writer), videos(writer) if with_videos else (), pad_id=PAD)


def _words(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(WORD, VOCAB, (n,), generator=generator).tolist()
