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

import torch
from torch import Tensor

from tpcal.plans.errors import UsageError


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
    text_before_visual: bool
    """A ``text`` token stands before a visual one, so that visual tokens can attend to text."""
    vision: Tensor | None = None
    """[B, N, 1 + E] score and keys of each visual token in the vision tower, by rank; see
    tpcal.plans.images.vision_reader. None if no selector needs them."""

    def to(self, device: torch.device) -> PromptTokens:
        """The tokens on a device; the same object if they are there already."""
        if self.visual.device == device:
            return self
        return replace(
            self,
            visual=self.visual.to(device),
            real=self.real.to(device),
            last=self.last.to(device),
            text=self.text.to(device),
            rank=self.rank.to(device),
            vision=None if self.vision is None else self.vision.to(device),
        )

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
    """The prompt without its grids. Waits for the device once.

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
    # The mask covers the cache too. The last S entries belong to the tokens of this pass.
    real = torch.ones_like(visual) if mask is None else mask[:, -visual.shape[1] :].bool()
    visual = visual & real
    if prompt_length is None:
        prompt_length = real.sum(dim=1) - n_drafts
    # The last prompt token is the real token whose ordinal, counted from 1, is the prompt's
    # length.
    place = torch.arange(visual.shape[1], device=visual.device)
    ordinal = real.cumsum(dim=1)
    is_last = real & (ordinal == prompt_length.to(real.device)[:, None])
    last = is_last.to(torch.uint8).argmax(dim=1)
    rank = torch.where(visual, visual.cumsum(dim=1) - 1, -1)
    # Text before the first visual token cannot see the image, so only later text is asked about
    # it.
    text = real & ~visual & (visual.cumsum(dim=1) > 0) & (place <= last[:, None])
    after_text = visual & (text.cumsum(dim=1) > 0)
    ends_visual = (visual & (place == last[:, None])).any(dim=1)
    # Six results per row travel from the device together, because each transfer waits for it.
    counts = [
        visual.sum(1),
        real.sum(1),
        text.sum(1),
        after_text.any(1),
        ends_visual,
        is_last.any(1),
    ]
    n_visual, n_real, n_text, mixed, ends, found = torch.stack([c.long() for c in counts]).tolist()
    if any(n > 0 and (end or not has) for n, end, has in zip(n_visual, ends, found, strict=True)):
        raise UsageError(
            "A prompt with images must end with a text token, as text decides which visual tokens "
            "stay; got one that ends with a visual token (chunked prefill does this: set "
            "prefill_chunk_size=None)."
        )
    counted = tuple(n_visual), tuple(n_real), tuple(n_text)
    return PromptTokens(visual, real, last, text, rank, (), *counted, any(mixed))


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
