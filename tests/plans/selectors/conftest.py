from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from tpcal.plans.selectors.base import Tokens

D, H, E, T = 16, 3, 8, 7
Shape = tuple[int, int]
PER_TOKEN = (
    *("hidden", "valid", "index", "image", "grid_row", "grid_col", "grid_shape", "keys"),
    *("vision_scores", "vision_keys", "covers"),
)
FILLER = {
    "valid": False,
    "covers": False,
    "index": -1,
    "image": -1,
    "grid_row": -1,
    "grid_col": -1,
    "grid_shape": -1,
}


def _row(
    images: Sequence[Shape], seed: int, dtype: torch.dtype, n_text: int, spread: float, width: int
) -> Tokens:
    """One row with the tokens of some images; ``spread`` 0 makes all of them nearly equal.

    The last column of images with at least 4 columns is made of newlines, which cover no pixels.
    """
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)[None]

    cells = [
        (i, r, c, h, w) for i, (h, w) in enumerate(images) for r in range(h) for c in range(w)
    ]
    place = torch.tensor(cells, dtype=torch.int64).view(-1, 5)[None]
    n = len(cells)
    base = noise(1, width)
    hidden = base + noise(n, width, scale=spread or 1e-4)
    logits = noise(H, n)
    covers = (place[..., 2] < place[..., 4] - 1) | (place[..., 4] < 4)
    return Tokens(
        layer=2,
        hidden=hidden,
        valid=torch.ones(1, n, dtype=torch.bool),
        index=torch.arange(n)[None],
        image=place[..., 0],
        n_original=torch.tensor([n]),
        grid_row=place[..., 1],
        grid_col=place[..., 2],
        grid_shape=place[..., 3:],
        logits=logits,
        lse=torch.cat((logits.double(), torch.ones(1, H, 1)), -1).logsumexp(-1).to(dtype),
        keys=noise(n, E),
        text_hidden=noise(n_text, width),
        text_valid=torch.ones(1, n_text, dtype=torch.bool),
        text_keys=noise(n_text, E),
        text_attention=noise(n_text, n).softmax(-1),
        vision_scores=noise(n).abs().masked_fill(~covers, -torch.inf),
        vision_keys=noise(n, 6).masked_fill(~covers[..., None], 0),
        covers=covers,
        final_norm=lambda x: 2 * x * x.double().pow(2).mean(-1, keepdim=True).rsqrt().to(x.dtype),
    )


def _moved(x: Tensor, to: Tensor, width: int, dim: int, filler: object) -> Tensor:
    shape = list(x.shape)
    shape[dim] = width
    out = x.new_full(shape, filler)  # type: ignore[arg-type]
    return out.index_copy_(dim, to, x)


def _padded(row: Tokens, n: int, n_text: int, garbage: float, at: Tensor | None = None) -> Tokens:
    """The row among filler; ``at`` says where its tokens stand, otherwise at the left."""
    at = torch.arange(row.valid.shape[1]) if at is None else at
    text_at = torch.arange(row.text_valid.shape[1])
    new = {
        name: _moved(getattr(row, name), at, n, 1, FILLER.get(name, garbage)) for name in PER_TOKEN
    }
    for name in ("text_hidden", "text_keys", "text_valid"):
        filler = False if name == "text_valid" else garbage
        new[name] = _moved(getattr(row, name), text_at, n_text, 1, filler)
    looks = _moved(_moved(row.text_attention, text_at, n_text, 1, garbage), at, n, 2, garbage)
    logits = _moved(row.logits, at, n, 2, garbage)
    return replace(row, **new, logits=logits, text_attention=looks)


def _stacked(rows: Sequence[Tokens], garbage: float = 7.0, extra: int = 0) -> Tokens:
    n = max(row.valid.shape[1] for row in rows) + extra
    n_text = max(row.text_valid.shape[1] for row in rows) + extra
    rows = [_padded(row, n, n_text, garbage) for row in rows]
    joined = {
        f.name: torch.cat([getattr(row, f.name) for row in rows])
        for f in fields(Tokens)
        if isinstance(getattr(rows[0], f.name), Tensor)
    }
    return replace(rows[0], **joined)


@pytest.fixture
def make_row() -> Callable[..., Tokens]:
    """Builds one row: ``make_row([(h, w), ...], seed=0, dtype=float32, n_text=7, spread=1.0, width=16)``."""

    def build(
        images: Sequence[Shape],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        n_text: int = T,
        spread: float = 1.0,
        width: int = D,
    ) -> Tokens:
        return _row(images, seed, dtype, n_text, spread, width)

    return build


@pytest.fixture
def stack() -> Callable[..., Tokens]:
    """Joins rows into a batch, padded at the right with ``garbage``: ``stack(rows, extra=3)``."""
    return _stacked


@pytest.fixture
def scatter() -> Callable[..., Tokens]:
    """Moves a row's tokens to given places among filler: ``scatter(row, at, width)``."""
    return lambda row, at, width: _padded(row, width, row.text_valid.shape[1], 5.0, at)
