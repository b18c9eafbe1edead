"""The prompt of one forward pass: which tokens are visual, real or text, and where images lie.

Every tensor here is by *place*: the number of a token within the pass as the model sees it,
padding included, 0..S-1. A *rank* counts the visual tokens of a row, 0..N-1. For example, with
``p`` for padding, ``t`` for text and ``v`` for visual tokens:

    place    0  1  2  3  4  5  6
    token    p  t  v  v  v  t  t
    rank    -1 -1  0  1  2 -1 -1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from tpcal.plans.errors import UsageError
from tpcal.plans.executor.transfers import all_on_device


@dataclass(frozen=True)
class ViewGrid:
    """Places of one view's visual tokens: an image, its tiled part, or one step of a video."""

    row: Tensor
    """[n] int64."""
    col: Tensor
    """[n] int64; tokens without area (newline, class) stand in the extra columns."""
    n_rows: int
    n_cols: int
    """Extra columns included."""
    n_extra_cols: int = 0
    """Last columns, of tokens that cover no pixels."""
    image: int = 0
    """Which image or video of the prompt this is a view of, in order of appearance."""
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """x0, y0, x1, y1: the part of the image that the cells cover, in fractions of its sides."""
    time: int = 0
    """Step of a video."""

    def boxes(self) -> Tensor:
        """[n, 4] x0, y0, x1, y1 of each token in fractions of the image; nan without area."""
        # Cells divide the region evenly. Extra columns stand for no pixels, so they take no share.
        n_cols = self.n_cols - self.n_extra_cols
        x0, y0, x1, y1 = self.region
        cell = torch.stack((self.col, self.row), dim=-1).double()  # [n, 2]
        size = cell.new_tensor([(x1 - x0) / n_cols, (y1 - y0) / self.n_rows])
        corner = cell.new_tensor([x0, y0]) + cell * size
        boxes = torch.cat((corner, corner + size), dim=-1)
        return boxes.masked_fill((self.col >= n_cols)[:, None], torch.nan)


def by_image(views: Sequence[ViewGrid]) -> list[list[ViewGrid]]:
    """The views of each image or video of a prompt, in order of appearance."""
    return [list(views) for _, views in groupby(views, key=lambda view: view.image)]


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of one forward pass; all tensors are by place."""

    visual: Tensor
    """[B, S] bool."""
    real: Tensor
    """[B, S] bool, False on padding."""
    fixed: Tensor
    """[B, S] bool, real tokens that are not visual: no cut drops them."""
    last: Tensor
    """[B] int64 place of the last prompt token: the query of attention scores."""
    text: Tensor
    """[B, S] bool, text after the row's first visual token, up to ``last``."""
    rank: Tensor
    """[B, S] int64 rank of a visual token among the row's visual tokens; -1 elsewhere."""
    grids: tuple[tuple[ViewGrid, ...], ...]
    """The images of each row."""
    n_visual: tuple[int, ...]
    n_real: tuple[int, ...]
    n_text: tuple[int, ...]
    """Number of ``text`` tokens of each row."""
    ends_last: bool
    """The last token of every row is the last one of its prompt: no draft, answer or padding."""
    n_behind: tuple[int, ...]
    """How many places the last prompt token of each row stands behind its first visual token; 0
    without visual tokens."""
    text_before_visual: bool
    """A ``text`` token stands before a visual one, so that visual tokens can attend to text."""
    vision: Tensor | None = None
    """[B, N, 1 + E] score and keys of each visual token in the vision tower, by rank; see
    tpcal.plans.images.vision_reader. None if no selector needs them."""

    def to(self, device: torch.device) -> PromptTokens:
        """The tokens on a device; the same object if they are there already."""
        if self.visual.device == device:
            return self
        given = [self.last, self.rank, self.visual, self.real, self.fixed, self.text]
        last, rank, visual, real, fixed, text = all_on_device(given, device)
        vision = None if self.vision is None else self.vision.to(device)
        moved = replace(self, visual=visual, real=real, fixed=fixed, last=last, text=text)
        return replace(moved, rank=rank, vision=vision)

    @property
    def n_query_text(self) -> int:
        """Largest number of ``text`` tokens in a row."""
        return max(self.n_text)

    @property
    def n_rows(self) -> int:
        return self.visual.shape[0]

    @property
    def length(self) -> int:
        return self.visual.shape[1]


def read_prompt(
    visual: Tensor,
    mask: Tensor | None,
    prompt_length: Tensor | None = None,
    n_drafts: int = 0,
) -> PromptTokens:
    """The prompt without its grids, on the CPU. Waits for the device once.

    Args:
        visual: [B, S] bool.
        mask: [B, >= S] attention mask with two dimensions, 0 on padding, for all tokens seen so
            far; None without padding.
        prompt_length: [B] number of real tokens up to the end of the prompt; None if every token
            but drafts belongs to the prompt.
        n_drafts: Number of real tokens at the end of every row that are drafts.

    Raises:
        UsageError: The prompt of a row with visual tokens is empty or ends with a visual token,
            so that no text can decide which of them stay.
    """
    # The two masks come to the host, because a GPU takes longer to start each step of the
    # arithmetic on them than the host takes to carry it out.
    seen, real = _on_host(visual, mask)
    seen = seen & real
    n_prompt = real.sum(1) - n_drafts
    if prompt_length is not None:
        n_prompt = prompt_length.to("cpu").numpy()
    # The last prompt token is the real token whose ordinal, counted from 1, is the prompt's
    # length.
    is_last = real & (real.cumsum(1) == n_prompt[:, None])
    last = is_last.argmax(1)
    ordinal = seen.cumsum(1)
    rank = np.where(seen, ordinal - 1, -1)
    # Text before the first visual token cannot see the image, so only later text is asked about
    # it.
    fixed = real & ~seen
    text = fixed & (ordinal > 0) & (np.arange(seen.shape[1]) <= last[:, None])
    after_text = seen & (text.cumsum(1) > 0)
    ends_visual = np.take_along_axis(seen, last[:, None], 1)[:, 0]
    if (seen.any(1) & (ends_visual | ~is_last.any(1))).any():
        raise UsageError(
            "A prompt with images must end with a text token, as text decides which visual tokens "
            "stay; got one that ends with a visual token (chunked prefill does this: set "
            "prefill_chunk_size=None)."
        )
    n_visual, n_real, n_text = (tuple(mask.sum(1).tolist()) for mask in (seen, real, text))
    return PromptTokens(
        visual=torch.from_numpy(seen),
        real=torch.from_numpy(real),
        fixed=torch.from_numpy(fixed),
        last=torch.from_numpy(last),
        text=torch.from_numpy(text),
        rank=torch.from_numpy(rank),
        grids=(),
        n_visual=n_visual,
        n_real=n_real,
        n_text=n_text,
        n_behind=tuple(np.where(seen.any(1), last - seen.argmax(1), 0).tolist()),
        ends_last=bool(is_last[:, -1:].all()),
        text_before_visual=bool(after_text.any()),
    )


def _on_host(visual: Tensor, mask: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """The visual and the real tokens, [B, S] bool each, in one transfer."""
    if mask is None:
        seen = visual.to("cpu").numpy()
        return seen, np.ones_like(seen)
    # The mask covers the cache too. The last S entries belong to the tokens of this pass.
    real = mask[:, -visual.shape[1] :].to(visual.device, torch.bool)
    seen, real = torch.stack([visual, real]).to("cpu").numpy()
    return seen, real


def grid_table(prompt: PromptTokens) -> Tensor:
    """[B, N0, 6] int64 table by rank, on the CPU; -1 beyond the visual tokens of a row.

    Its columns are the number of the view, row and column in the view's grid, the grid's rows and
    columns, and 1 if the token covers pixels, otherwise 0.
    """
    table = torch.full((prompt.n_rows, max(prompt.n_visual), 6), -1, dtype=torch.int64)
    for b, grids in enumerate(prompt.grids):
        start = 0
        for number, grid in enumerate(grids):
            part = table[b, start : start + len(grid.row)]
            part[:, 0], part[:, 1], part[:, 2] = number, grid.row, grid.col
            part[:, 3], part[:, 4] = grid.n_rows, grid.n_cols
            part[:, 5] = grid.col < grid.n_cols - grid.n_extra_cols
            start += len(grid.row)
    return table
