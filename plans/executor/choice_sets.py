"""The sets of visual tokens that a cut chooses from: whole prompts, or their images one by one.

Selectors choose in every row of a batch by itself. To choose in every image by itself, they get
each image as a row of its own, and their choice is put back into the rows of the prompts:

    prompts, N = 5         a a a b b           images, W = 3      a a a
                           c c - - -                              b b -
                                                                  c c -
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tpcal.plans.executor.prompt import PromptTokens, by_image
from tpcal.plans.executor.transfers import on_device
from tpcal.plans.selectors.base import Counts, Tokens


@dataclass(frozen=True)
class ChoiceSet:
    """The visual tokens of one prompt, or of one of its images: neighbours in order of rank."""

    row: int
    """The row of its prompt in the batch."""
    n_tokens: int
    """Visual tokens before the first cut."""
    first_rank: int = 0
    """Rank of the first of them in the row."""
    first_view: int = 0
    """Number of its first view in the row."""


@dataclass(frozen=True)
class ChoiceSets:
    """The sets of a batch, in order of rows and ranks."""

    sets: tuple[ChoiceSet, ...]
    n_rows: int

    @classmethod
    def of(cls, prompt: PromptTokens, scope: str) -> ChoiceSets:
        """The sets of a plan's scope.

        Prompts of at most one image are the sets themselves in both scopes.
        """
        prompts = tuple(ChoiceSet(row, n) for row, n in enumerate(prompt.n_visual))
        images = tuple(_images(prompt)) if scope == "image" else ()
        several = len({one.row for one in images}) < len(images)
        return cls(images if several else prompts, prompt.n_rows)

    @cached_property
    def are_rows(self) -> bool:
        """Whether the sets are the rows of the batch."""
        return [one.row for one in self.sets] == list(range(self.n_rows))

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Visual tokens of each set before the first cut."""
        return tuple(one.n_tokens for one in self.sets)

    def counts(
        self, prompt: PromptTokens, n_tokens: Sequence[int], n_keep: Sequence[int]
    ) -> Counts:
        """The numbers of a cut that chooses within each set.

        Args:
            prompt: The prompt of the pass.
            n_tokens: Number of tokens of each set before the cut.
            n_keep: Number of tokens of each set after it.
        """
        # The views of a row are numbered from its first set to its last one.
        n_views, after = [], dict(enumerate(map(len, prompt.grids)))
        for one in reversed(self.sets):
            n_views.append(after[one.row] - one.first_view)
            after[one.row] = one.first_view
        texts = tuple(prompt.n_text[one.row] for one in self.sets)
        return Counts(tuple(n_tokens), tuple(n_keep), tuple(reversed(n_views)), texts)

    def by_row(self, counts: Sequence[int]) -> tuple[int, ...]:
        """The sum of the counts of each row's sets."""
        sums = [0] * self.n_rows
        for one, count in zip(self.sets, counts, strict=True):
            sums[one.row] += count
        return tuple(sums)


def _images(prompt: PromptTokens) -> list[ChoiceSet]:
    """The images and videos of all rows; the views of one are neighbours."""
    found = []
    for row, views in enumerate(prompt.grids):
        rank = first_view = 0
        for image in by_image(views):
            sizes = [len(view.row) for view in image]
            found.append(ChoiceSet(row, sum(sizes), rank, first_view))
            rank, first_view = rank + sum(sizes), first_view + len(sizes)
    return found


class Apart:
    """The tokens alive at a cut, with every set as a row of its own.

    Args:
        sets: The sets, P of them.
        alive: [P] number of tokens alive in each set.
        n_columns: Number of columns of the prompts' tokens, N.
        device: Where the tokens are.
    """

    def __init__(
        self, sets: ChoiceSets, alive: Sequence[int], n_columns: int, device: torch.device
    ) -> None:
        self._shape = sets.n_rows, n_columns
        starts, ends = [], [0] * sets.n_rows
        for one, n in zip(sets.sets, alive, strict=True):
            starts.append(ends[one.row])
            ends[one.row] += n
        # One transfer to the device for all numbers of the sets.
        numbers = [
            (one.row, one.n_tokens, one.first_rank, one.first_view, start, n)
            for one, start, n in zip(sets.sets, starts, alive, strict=True)
        ]
        table = on_device(numbers, device)[..., None]  # [P, 6, 1]
        self._row, self._n_tokens, self._rank, self._view, first, n_alive = table.unbind(1)
        place = torch.arange(max(alive), device=device)
        self._valid = place < n_alive  # [P, W]
        self._column = (first + place).clamp(max=n_columns - 1)

    def tokens(self, tokens: Tokens) -> Tokens:
        """The tokens of prompts [B, N] as tokens of images [P, W].

        Ranks and views count from 0 in each image. What belongs to a prompt as a whole, as its
        text does, is repeated for each of its images.
        """
        return replace(
            tokens,
            hidden=tokens.hidden[self._row, self._column],
            valid=self._valid,
            index=self._numbered(tokens.index, self._rank),
            image=self._numbered(tokens.image, self._view),
            n_original=self._n_tokens[:, 0],
            grid_row=self._numbered(tokens.grid_row),
            grid_col=self._numbered(tokens.grid_col),
            grid_shape=self._numbered(tokens.grid_shape),
            logits=self._taken_last(tokens.logits),
            lse=self._of_prompt(tokens.lse),
            keys=self._taken_of(tokens.keys),
            text_hidden=self._of_prompt(tokens.text_hidden),
            text_valid=self._of_prompt(tokens.text_valid),
            text_keys=self._of_prompt(tokens.text_keys),
            text_attention=self._taken_last(tokens.text_attention),
            vision_scores=self._taken_of(tokens.vision_scores),
            vision_keys=self._taken_of(tokens.vision_keys),
            covers=self._covers(tokens.covers),
        )

    def together(self, values: Tensor) -> Tensor:
        """[B, N, ...] values of the prompts' tokens, from [P, W, ...]; zeros elsewhere."""
        n_rows, n_columns = self._shape
        # Filler has a column of its own behind the end, which is cut off.
        column = torch.where(self._valid, self._column, n_columns)
        found = values.new_zeros(n_rows, n_columns + 1, *values.shape[2:])
        return found.index_put_((self._row.expand_as(column), column), values)[:, :n_columns]

    def taken(self, values: Tensor) -> Tensor:
        """[P, W, ...] values of the images' tokens, from [B, N, ...]."""
        return values[self._row, self._column]

    def _taken_of(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else self.taken(values)

    def _numbered(self, values: Tensor, first: Tensor | int = 0) -> Tensor:
        taken = values[self._row, self._column] - first
        valid = self._valid if values.ndim == 2 else self._valid[..., None]
        return taken.masked_fill(~valid, -1)

    def _covers(self, covers: Tensor | None) -> Tensor | None:
        return None if covers is None else covers[self._row, self._column] & self._valid

    def _taken_last(self, values: Tensor | None) -> Tensor | None:
        """[P, H, W] from [B, H, N]."""
        if values is None:
            return None
        column = self._column[:, None].expand(-1, values.shape[1], -1)
        return values[self._row[:, 0]].gather(2, column)

    def _of_prompt(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values[self._row[:, 0]]
