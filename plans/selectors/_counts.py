"""Numbers of tokens that the host knows, so that no selector waits for a GPU to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Counts:
    """Numbers of a batch of tokens, and of a cut, on the host.

    They repeat what the tensors of ``Tokens`` and ``n_keep`` say. Reading those on a GPU makes the
    host wait for all work before them.
    """

    n_tokens: tuple[int, ...]
    """[B] visual tokens of each row."""
    n_keep: tuple[int, ...]
    """[B] tokens that each row keeps, at most ``n_tokens``."""
    n_images: tuple[int, ...]
    """[B] images of each row; images without tokens may count."""
    n_text: tuple[int, ...]
    """[B] text tokens of each row."""
    filler_right: bool = True
    """Whether filler stands on the right of all rows."""

    @property
    def images(self) -> int:
        """Largest number of images in a row, at least 1."""
        return max((1, *self.n_images))

    def places(self, valid: Tensor) -> list[slice | Tensor]:
        """Ascending indices of the tokens of each row; see `real_places`."""
        return real_places(valid, self.n_tokens if self.filler_right else None)

    def text_places(self, valid: Tensor) -> list[slice | Tensor]:
        """Ascending indices of the text tokens of each row; see `real_places`."""
        return real_places(valid, self.n_text if self.filler_right else None)


def read_counts(valid: Tensor, image: Tensor, text_valid: Tensor | None, n_keep: Tensor) -> Counts:
    """The counts that the tensors say. Waits for the device once.

    Args:
        valid: [B, N] bool, False on filler.
        image: [B, N] int64, number of each token's image.
        text_valid: [B, T] bool, False on filler; None without text.
        n_keep: [B] int64, number of tokens to keep in each row.
    """
    n_tokens = valid.sum(-1)
    numbers = n_images = torch.zeros_like(n_tokens)
    if image.numel():
        n_images = image.amax(-1) + 1
    n_text = numbers if text_valid is None else text_valid.sum(-1)
    n_keep = torch.minimum(n_keep.to(valid.device), n_tokens).clamp(min=0)
    rows = (n_tokens, n_keep, n_images, n_text)
    tokens, kept, images, texts = (tuple(row) for row in torch.stack(rows).tolist())
    return Counts(tokens, kept, images, texts, filler_right=False)


def real_places(valid: Tensor, n_tokens: Sequence[int] | None = None) -> list[slice | Tensor]:
    """Ascending indices of the tokens of each row of ``valid`` [B, N] that are no filler.

    A row whose filler is all on the right gives a slice, which needs no copy.

    Args:
        valid: [B, N] bool.
        n_tokens: Numbers of tokens of the rows, if all filler is known to be on the right.
            Otherwise they are read from ``valid``.
    """
    if n_tokens is not None:
        return [slice(0, n) for n in n_tokens]
    counts = valid.sum(-1)
    left = torch.arange(valid.shape[-1], device=valid.device) < counts[:, None]
    known = torch.stack((counts, (left == valid).all(-1).long()), dim=-1).tolist()
    return [
        slice(0, n) if at_left else row.nonzero()[:, 0]
        for (n, at_left), row in zip(known, valid, strict=True)
    ]
