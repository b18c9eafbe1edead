"""A model with prompts to try the laws on, and how its prompts become a padded batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode and prompts for it."""

    name: str
    model: PreTrainedModel
    rows: tuple[Inputs, ...]
    """Inputs of one prompt each, batch of one, without padding; ``input_ids`` and
    ``attention_mask`` are [1, S]. They differ in length, images and image sizes; one has no
    image."""
    videos: tuple[Inputs, ...] = ()
    """Further prompts with videos, where the model takes them."""
    pad_id: int = 0
    per_row: frozenset[str] = field(default_factory=frozenset)
    """Inputs other than token-like ones whose first dimension is the prompt and not the image;
    a prompt without them gets zeros."""
    positions: Callable[[Inputs], Tensor] | None = None
    """Position ids of a batch, as the model numbers them; None: each prompt's tokens from 0."""

    def batch(self, rows: Sequence[Inputs], side: str = "left") -> dict[str, Tensor]:
        """The prompts as one batch, padded on ``side``."""
        return collate(rows, side, self.pad_id, self.per_row)


def collate(
    rows: Sequence[Inputs], side: str, pad_id: int = 0, per_row: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """One batch of several prompts.

    Inputs shaped like ``input_ids`` are padded to the longest prompt; all others are joined along
    their first dimension, the others padded with zeros at their ends.

    Args:
        rows: Inputs of one prompt each.
        side: ``left`` or ``right``: where the padding of tokens stands.
        pad_id: Token id of padding.
        per_row: Inputs whose first dimension is the prompt.
    """
    length = max(row["input_ids"].shape[1] for row in rows)
    batch = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if all(name in row and row[name].shape == row["input_ids"].shape for row in rows):
            filler = pad_id if name == "input_ids" else 0
            batch[name] = torch.cat([_padded(row[name], length, side, filler) for row in rows])
            continue
        parts = [row[name] for row in rows if name in row]
        if name in per_row:
            empty = torch.zeros_like(parts[0])
            parts = [row.get(name, empty) for row in rows]
        batch[name] = _joined(parts)
    return batch


def _padded(tokens: Tensor, length: int, side: str, filler: int) -> Tensor:
    n = length - tokens.shape[1]
    return torch.nn.functional.pad(tokens, (n, 0) if side == "left" else (0, n), value=filler)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    sizes = [max(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
    ends = [[n - p.shape[d] for d, n in enumerate(sizes, 1)] for p in parts]
    return torch.cat(
        [
            torch.nn.functional.pad(p, [n for end in reversed(gaps) for n in (0, end)])
            for p, gaps in zip(parts, ends, strict=True)
        ]
    )
