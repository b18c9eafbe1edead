"""A model with prompts to test the laws on, and the batches and conversations made of them."""

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
    """Inputs of single prompts (batch size 1) without padding; ``input_ids`` and
    ``attention_mask`` are [1, S]. They differ in length, images and image sizes; one has no
    image."""
    videos: tuple[Inputs, ...] = ()
    """Further prompts with videos, if the model accepts videos."""
    pad_id: int = 0
    per_row: frozenset[str] = field(default_factory=frozenset)
    """Inputs other than token-like ones whose first dimension is the prompt and not the image;
    a prompt without them gets zeros."""
    positions: Callable[[Inputs], Tensor] | None = None
    """Function that returns the position ids of a batch. If it is None, positions count from 0 in
    each prompt."""
    appended: Mapping[str, int] = field(default_factory=dict)
    """Values of token-like inputs at tokens that follow the prompt; inputs that are missing here
    have the value 0."""

    def batch(self, rows: Sequence[Inputs], side: str = "left") -> dict[str, Tensor]:
        """The prompts as one batch, padded on ``side``."""
        return collate(rows, side, self.pad_id, self.per_row)

    def numbered(self, inputs: Inputs) -> Tensor:
        """Position ids [B, S] of a batch, or the arguments that the model takes instead."""
        if self.positions is not None:
            return self.positions(inputs)
        return (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)

    def extended(self, inputs: Inputs, tokens: Tensor) -> dict[str, Tensor]:
        """The batch with text tokens [B, n] after every prompt."""
        longer = dict(inputs)
        for name in token_like([inputs]):
            new = torch.full_like(tokens, self.appended.get(name, 0))
            longer[name] = torch.cat([inputs[name], new.to(inputs[name].dtype)], dim=1)
        longer["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
        longer["attention_mask"] = torch.cat(
            [inputs["attention_mask"], torch.ones_like(tokens)], dim=1
        )
        return longer

    def followed(self, first: Inputs, second: Inputs) -> dict[str, Tensor]:
        """One prompt, or a padded batch of one, after another."""
        alike = token_like([first, second])
        joined = {}
        for name in dict.fromkeys([*first, *second]):
            parts = [row[name] for row in (first, second) if name in row]
            if name in self.per_row and parts[0].ndim == 1:  # how many images a prompt has
                joined[name] = torch.stack(parts).sum(dim=0)
                continue
            joined[name] = _joined(parts, dim=1 if name in {*alike, *self.per_row} else 0)
        return joined

    def padded(self, row: Inputs, length: int, side: str = "left") -> dict[str, Tensor]:
        """One prompt with padding added."""
        alike = token_like([row])
        return {
            name: _padded(value, length, side, self.pad_id if name == "input_ids" else 0)
            if name in alike
            else value
            for name, value in row.items()
        }


def collate(
    rows: Sequence[Inputs], side: str, pad_id: int = 0, per_row: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """One batch of several prompts.

    Inputs shaped like ``input_ids`` are padded to the longest prompt. All other inputs are joined
    along their first dimension and padded with zeros at the ends of the other dimensions.

    Args:
        rows: Inputs of one prompt each.
        side: ``left`` or ``right``, the side of the padding.
        pad_id: Token id of padding.
        per_row: Inputs whose first dimension is the prompt.
    """
    length = max(row["input_ids"].shape[1] for row in rows)
    alike = token_like(rows)
    batch = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in alike:
            filler = pad_id if name == "input_ids" else 0
            batch[name] = torch.cat([_padded(row[name], length, side, filler) for row in rows])
            continue
        parts = [row[name] for row in rows if name in row]
        if name in per_row:
            empty = torch.zeros_like(parts[0])
            parts = [row.get(name, empty) for row in rows]
        batch[name] = _joined(parts)
    return batch


def token_like(rows: Sequence[Inputs]) -> set[str]:
    """Names of the inputs that have one number per token in every prompt."""
    return {
        name
        for name in rows[0]
        if all(name in row and row[name].shape == row["input_ids"].shape for row in rows)
    }


def _padded(tokens: Tensor, length: int, side: str, filler: int) -> Tensor:
    n = length - tokens.shape[1]
    return torch.nn.functional.pad(tokens, (n, 0) if side == "left" else (0, n), value=filler)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors joined along ``dim``, padded with zeros to equal sizes in other dimensions."""
    sizes = [max(part.shape[d] for part in parts) for d in range(parts[0].ndim)]
    ends = [[0 if d == dim else n - part.shape[d] for d, n in enumerate(sizes)] for part in parts]
    return torch.cat(
        [
            torch.nn.functional.pad(part, [n for end in reversed(gaps) for n in (0, end)])
            for part, gaps in zip(parts, ends, strict=True)
        ],
        dim=dim,
    )
