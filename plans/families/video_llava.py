"""Video-LLaVA: one square grid per image and per frame of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, rect_grid, square_grid
from tpcal.plans.families.llava_next import tower_side

_VIDEO = 2


class VideoLlava(Family):
    """Supports Video-LLaVA.

    Frames keep the tower's class token, and images do not. An unbroken run of video tokens counts
    as one video, because encoded frames do not show where a video ends.

    Source:
        Lin et al. 2023 (arXiv 2311.10122).
    """

    name = "video_llava"
    architectures = ("VideoLlavaForConditionalGeneration",)

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> tuple[tuple[ViewGrid, ...], ...]:
        """One view per image and per frame."""
        side = tower_side(model)
        kinds = prompt.visual.long()
        ids = inputs.get("input_ids")
        if ids is not None:
            video = (ids == model.config.video_token_id).to(kinds.device)
            kinds = kinds.masked_fill(prompt.visual & video, _VIDEO)
        return tuple(
            tuple(
                replace(view, image=image)
                for image, views in enumerate(_pictures(row, side))
                for view in views
            )
            for row in kinds.cpu()
        )


FAMILY = VideoLlava()


def _pictures(kinds: Tensor, side: int) -> Iterator[tuple[ViewGrid, ...]]:
    """The views of every image and video of a row.

    Args:
        kinds: [S] kind of each token: 0 for text, 1 for images, 2 for videos.
        side: Number of tokens along one side of an image.
    """
    frame = square_grid(side, n_extra=1)
    for kind, n in zip(*torch.unique_consecutive(kinds, return_counts=True), strict=True):
        if kind == _VIDEO:
            yield tuple(replace(frame, time=time) for time in range(int(n) // len(frame.row)))
        elif kind:
            yield from [(rect_grid(side, side),)] * (int(n) // side**2)
