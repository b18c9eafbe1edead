"""Prompts of tiny models whose images have any size: pixels, grids and token types.

Pixels come from the image processor of the model; videos, whose processors need torchvision, are
random patches of the same width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tpcal.plans.laws import Case

PAD, BOS = 0, 1
IMAGE, VIDEO = 5, 6
START, END = 7, 8
"""Stand around every image and every frame or video."""
VIDEO_START, VIDEO_END = 9, 10
WORD = 16
"""First id of ordinary text."""
VOCAB = 120
PATCH, MERGE = 4, 2

Part = int | tuple[int, int] | tuple[int, int, int]
"""Words, an image of (rows, columns) tokens, or a video of (steps, rows, columns) tokens."""


@dataclass(frozen=True)
class Writer:
    """Writes prompts the way one model's processor does."""

    processor: Any
    """Image processor with patches of ``PATCH`` pixels."""
    frames_apart: bool = False
    """A time stamp stands before every frame of a video."""
    video_id: int = VIDEO
    patches_per_step: int = 1
    """Frames of patches that become one step of video tokens."""
    typed: bool = True
    """The processor gives ``mm_token_type_ids``."""
    merge_sizes: bool = False
    """The processor gives ``image_merge_sizes``."""

    def prompt(self, *parts: Part, seed: int = 0) -> dict[str, Tensor]:
        """Model inputs of one prompt, a batch of one."""
        generator = torch.Generator().manual_seed(seed)
        ids, types = [BOS], [0]
        for part in parts:
            more, kind = self._tokens(part, generator)
            ids += more
            types += [kind if token in (IMAGE, VIDEO) else 0 for token in more]
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self.typed:
            inputs["mm_token_type_ids"] = torch.tensor([types])
        images = [p for p in parts if isinstance(p, tuple) and len(p) == 2]
        videos = [p for p in parts if isinstance(p, tuple) and len(p) == 3]
        if images:
            inputs |= self._images(images, generator)
        if videos:
            inputs |= self._videos(videos, generator)
        return inputs

    def _tokens(self, part: Part, generator: torch.Generator) -> tuple[list[int], int]:
        if isinstance(part, int):
            return torch.randint(WORD, VOCAB, (part,), generator=generator).tolist(), 0
        if len(part) == 2:
            return [START, *[IMAGE] * (part[0] * part[1]), END], 1
        t, h, w = part
        if not self.frames_apart:
            return [START, *[self.video_id] * (t * h * w), END], 2
        frames: list[int] = []
        for step in range(t):
            frames += [WORD + step, START, *[self.video_id] * (h * w), END]
        return [VIDEO_START, *frames, VIDEO_END], 2

    def _images(self, sizes: Sequence[tuple[int, int]], generator: Any) -> dict[str, Tensor]:
        side = PATCH * MERGE
        pictures = [
            Image.fromarray(
                torch.randint(
                    256, (h * side, w * side, 3), dtype=torch.uint8, generator=generator
                ).numpy()
            )
            for h, w in sizes
        ]
        inputs = dict(self.processor(images=pictures, return_tensors="pt"))
        assert inputs["image_grid_thw"].tolist() == [[1, MERGE * h, MERGE * w] for h, w in sizes]
        return inputs

    def _videos(self, sizes: Sequence[tuple[int, int, int]], generator: Any) -> dict[str, Tensor]:
        grid = torch.tensor(
            [[t * self.patches_per_step, MERGE * h, MERGE * w] for t, h, w in sizes]
        )
        probe = self.processor(images=[Image.new("RGB", (16, 16))], return_tensors="pt")
        width = probe["pixel_values"].shape[1:]
        n = int(grid.prod(dim=1).sum())
        inputs = {
            "pixel_values_videos": torch.randn(n, *width, generator=generator),
            "video_grid_thw": grid,
        }
        if self.merge_sizes:
            inputs["video_merge_sizes"] = torch.full((len(sizes),), MERGE)
        return inputs


def text(**changes: Any) -> dict[str, Any]:
    """Text part of a config, made anew as configs change the dictionaries they get."""
    made = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": BOS,
        "eos_token_id": None,
        "pad_token_id": PAD,
        "initializer_range": 0.15,
    }
    return {**made, **changes}


AUDIO: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "output_dim": 64,
}
"""A tower for sounds, which no prompt has."""
HEARING: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": 11,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_start_token_id": 12,
    "audio_end_token_id": 13,
    "pad_token_id": PAD,
    "initializer_range": 0.15,
}
"""What models that also hear call their tokens."""


def timed(made: Case) -> Case:
    """The case with the seconds of its videos' steps, which models that also hear number by."""
    videos = tuple({**row, "video_second_per_grid": torch.tensor([1.0])} for row in made.videos)

    def positions(inputs: Any) -> Tensor:
        renamed = {"second_per_grids" if "second" in k else k: v for k, v in inputs.items()}
        return numbering(made.model)(renamed)

    return replace(made, videos=videos, positions=positions)


def case(name: str, kind: type[Any], config: Any, attn: str, writer: Writer) -> Case:
    """A random model of this class with its prompts."""
    torch.manual_seed(0)
    model = kind._from_config(config, attn_implementation=attn).eval()
    positions = numbering(model) if hasattr(model.model, "get_rope_index") else None
    return Case(name, model, rows(writer), videos(writer), pad_id=PAD, positions=positions)


def rows(writer: Writer) -> tuple[dict[str, Tensor], ...]:
    """Four prompts: one image; two of different shape; none; a third shape and longer text."""
    return (
        writer.prompt(3, (4, 4), 4, seed=0),
        writer.prompt(2, (2, 5), 3, (4, 3), 5, seed=1),
        writer.prompt(7, seed=2),
        writer.prompt(1, (3, 6), 11, seed=3),
    )


def videos(writer: Writer) -> tuple[dict[str, Tensor], ...]:
    """A prompt with a video, and one with an image (or another video) and a video."""
    first = (3, 3) if writer.video_id == VIDEO else (2, 3, 3)  # one id: not both in a prompt
    return (
        writer.prompt(2, (3, 2, 4), 4, seed=4),
        writer.prompt(2, first, 2, (2, 2, 3), 5, seed=5),
    )


def numbering(model: Any) -> Callable[[Any], Tensor]:
    """[3, B, S] position ids of a batch by the model's own `get_rope_index`."""

    # Before transformers 5.23, the thinkers of Qwen's Omni models have no model around the decoder.
    owner = model.model if hasattr(model.model, "get_rope_index") else model

    def positions(inputs: Any) -> Tensor:
        known = {k: v for k, v in inputs.items() if "pixel" not in k}
        if "image_grid_thw" in known or "video_grid_thw" in known:
            return owner.get_rope_index(**known)[0]
        text = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return text.expand(3, -1, -1)

    return positions


def processor(kind: type[Any]) -> Any:
    """An image processor with small patches that leaves small pictures as they are."""
    size = {"shortest_edge": 64, "longest_edge": 2**20}
    return kind(patch_size=PATCH, merge_size=MERGE, size=size)
