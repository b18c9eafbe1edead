"""Images and videos of any size: views from patch grids, or from the positions of M-RoPE."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tpcal.plans.executor.prompt import PromptTokens, ViewGrid
from tpcal.plans.families.base import Family, rect_grid, run_grid

_LOG = logging.getLogger(__name__)

IMAGE, VIDEO = 1, 2
"""Kinds of visual tokens, as in ``mm_token_type_ids``."""

Size = tuple[int, int, int]
"""Numbers of time steps, rows and columns of tokens."""
Views = tuple[tuple[ViewGrid, ...], ...]


def warn_of_runs() -> None:
    """Logs that runs of visual tokens are taken for images."""
    _LOG.warning(
        "The sizes of the images are not known here, so every unbroken run of visual tokens "
        "counts as one; selectors that look at places see a square or a line. Encode images "
        "while the plan is applied, or pass their sizes with the features."
    )


class InOrder(Family):
    """Base of the families whose inputs give the views of all images and videos, in order."""

    def grids(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> Views:
        """The views of each row's images, numbered in the order of their tokens.

        If these views do not match the prompt, because its features come from elsewhere, every
        unbroken run of visual tokens is treated as one image.
        """
        views = in_order(prompt, self.kinds(model, prompt, inputs), self.views(model, inputs))
        fit = tuple(sum(len(grid.row) for grid in row) for row in views) == prompt.n_visual
        return views if fit else self.unlisted(model, prompt, inputs)

    def kinds(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> Tensor:
        """[B, S] kind of each visual token, ``IMAGE`` or ``VIDEO``."""
        types, ids = inputs.get("mm_token_type_ids"), inputs.get("input_ids")
        if types is not None:
            return types
        if ids is None:
            return prompt.visual * IMAGE
        return torch.where(ids == getattr(model.config, "video_token_id", -1), VIDEO, IMAGE)

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """The views of all images or videos of the batch by kind, in order."""
        raise NotImplementedError

    def unlisted(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> Views:
        """The views of each row if the inputs do not give them."""
        warn_of_runs()
        return super().grids(model, prompt, inputs)


class AnySize(InOrder):
    """Base of the families whose inputs give the (time, height, width) of images in patches."""

    def numbered(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs unchanged, because the model computes position ids of padded prompts."""
        return dict(inputs)

    def views(
        self, model: PreTrainedModel, inputs: Mapping[str, Any]
    ) -> dict[int, list[tuple[ViewGrid, ...]]]:
        """One view per image and per step of a video."""
        sizes = self.sizes(model, inputs)
        return {kind: [steps_of(size) for size in given] for kind, given in sizes.items()}

    def unlisted(
        self, model: PreTrainedModel, prompt: PromptTokens, inputs: Mapping[str, Any]
    ) -> Views:
        """The views by the rotary positions.

        They are needed if the patch grids are not those of this pass: a later turn receives the
        grids of the whole conversation.
        """
        positions = inputs.get("position_ids")
        if positions is None or positions.ndim < 3:
            return super().unlisted(model, prompt, inputs)
        return by_position(prompt, positions)

    def sizes(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[int, list[Size]]:
        """Sizes in tokens of all images or videos of the batch by kind, in order."""
        vision: Any = model.config.vision_config
        merge, merge_steps = vision.spatial_merge_size, getattr(vision, "temporal_merge_size", 1)
        sizes = {}
        if "image_grid_thw" in inputs:
            grid = inputs["image_grid_thw"].tolist()
            sizes[IMAGE] = [(t, h // merge, w // merge) for t, h, w in grid]
        if "video_grid_thw" in inputs:
            grid = inputs["video_grid_thw"].tolist()
            sizes[VIDEO] = [(t // merge_steps, h // merge, w // merge) for t, h, w in grid]
        return sizes


def in_order(
    prompt: PromptTokens, kinds: Tensor, views: Mapping[int, Sequence[tuple[ViewGrid, ...]]]
) -> Views:
    """The views of each row, with numbered images, from those of all images and videos.

    Args:
        prompt: The prompt's tokens, without grids.
        kinds: [B, S] kind of each visual token, ``IMAGE`` or ``VIDEO``.
        views: Views of the images or videos by kind, row after row of the batch.
    """
    if len(views) == 1:
        of_rows = [list(views) * n for n in prompt.n_visual]
    else:
        of_rows = [
            row[seen].tolist() for row, seen in zip(kinds.cpu(), prompt.visual.cpu(), strict=True)
        ]
    left = {kind: iter(given) for kind, given in views.items()}
    return tuple(_row_in_order(kinds_of_row, left) for kinds_of_row in of_rows)


def _row_in_order(
    kinds: Sequence[int], left: Mapping[int, Iterator[tuple[ViewGrid, ...]]]
) -> tuple[ViewGrid, ...]:
    grids: list[ViewGrid] = []
    done = image = 0
    while done < len(kinds):
        views = next(left.get(kinds[done], iter(())), None)
        if views is None:
            break
        grids += [replace(view, image=image) for view in views]
        done += sum(len(view.row) for view in views)
        image += 1
    return tuple(grids)


def steps_of(size: Size) -> tuple[ViewGrid, ...]:
    """One view per time step of an image or video, in reading order."""
    steps, n_rows, n_cols = size
    return tuple(rect_grid(n_rows, n_cols, time=time) for time in range(steps))


def by_position(prompt: PromptTokens, positions: Tensor) -> Views:
    """The views of each row from the rotary positions of its visual tokens.

    An unbroken run of visual tokens is an image or a video. A time step of it ends where the
    position goes back in reading order.

    Args:
        prompt: The prompt's tokens, without grids.
        positions: [3 or more, B, S] position ids; the last two are row and column.
    """
    rows: list[list[ViewGrid]] = [[] for _ in prompt.n_visual]
    for row, starts_run, n, n_rows, n_cols in _steps(prompt, positions):
        grids = rows[row]
        image = grids[-1].image + int(starts_run) if grids else 0
        time = 0 if starts_run else grids[-1].time + 1
        whole = n == n_rows * n_cols
        grids.append(
            rect_grid(n_rows, n_cols, image=image, time=time) if whole else run_grid(n, image)
        )
    return tuple(tuple(grids) for grids in rows)


def _steps(prompt: PromptTokens, positions: Tensor) -> list[list[int]]:
    """(row of the batch, whether it starts a run, tokens, rows, columns) of every time step."""
    # A run of visual tokens starts where the batch row changes or the place is not the next one.
    # A step starts with a run, or where (h, w) does not increase in reading order. The extent of
    # its positions, last minus first plus one, gives its rows and columns.
    row, place = prompt.visual.nonzero(as_tuple=True)
    h, w = positions[-2:].to(row.device)[:, row, place].long()
    goes_on = (h.diff() > 0) | ((h.diff() == 0) & (w.diff() > 0))  # in reading order
    run = torch.nn.functional.pad((row.diff() != 0) | (place.diff() != 1), (1, 0), value=True)
    first = (run | torch.nn.functional.pad(~goes_on, (1, 0), value=True)).nonzero()[:, 0]
    last = torch.cat([first[1:], first.new_tensor([len(row)])]) - 1
    shape = (h[last] - h[first] + 1, w[last] - w[first] + 1)
    found = (row[first], run[first].long(), last - first + 1, *shape)
    return torch.stack(found, dim=1).tolist()
