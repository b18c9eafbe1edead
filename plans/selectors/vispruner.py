"""vispruner: keep what the vision tower attends to, and of the rest what is least repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._cosine import all_distances, directions
from tpcal.plans.selectors._merging import take
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    fraction,
    image_counts,
    image_quotas,
    pair_flops,
    ranks,
    whole,
)

_N_PAPER = 576  # tokens of an image in the paper


@dataclass(frozen=True)
class Vispruner(Selector):
    """Important tokens by the vision tower's attention, then repeats are removed from the rest.

    Each image has its share of ``n_keep``. The rest, by falling attention, is split into every
    first and every second token; the ``step`` tokens of the first part that are most like one of
    the second leave; and so on until the count is reached. Of equals the more attended stays.
    Tokens without patches (newlines) leave first.

    Needs:   vision, hidden states
    Cost:    O(B N^2 D) for all pairs of an image, then (N - K) / step rounds of O(B N^2 / 4)
    Source:  Zhang et al. 2024, arXiv 2412.01818 (VisPruner), there on the vision tower's output
             and before the decoder; ours compares the states at the cut. The released code orders
             the tokens anew after each round; ours keep their order by attention, and make as many
             rounds of a large image as of one of 576 tokens.
    """

    required: ClassVar[frozenset[str]] = frozenset({"vision"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"important_share": (0.0, 1.0)}

    important_share: float = fraction(0.5)
    """Share of an image's tokens picked by attention, rounded down."""
    step: int = whole(8, low=1)
    """Most tokens removed in one round, of up to 576; in proportion of an image with more."""

    def flops(self, work: Work) -> float:
        """All pairs of what attention did not pick, of one image."""
        n_rest = work.n_tokens - math.floor(self.important_share * work.n_keep)
        return pair_flops(n_rest, replace(work, n_tokens=n_rest))

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        scores, valid = tokens.vision_scores, tokens.valid
        assert scores is not None, "vision was not provided"
        if not valid.any():
            return torch.zeros_like(valid)
        image = tokens.image.clamp(min=0)
        quota = image_quotas(image, valid, n_keep)  # [B, M]
        n_important = (self.important_share * quota.double()).floor().long()
        place = ranks(scores, valid, image) - n_important.gather(-1, image)  # among the rest
        important = valid & (place < 0)
        n_seen = image_counts(image, valid & (scores != -torch.inf)) - n_important
        n_rest = torch.maximum(n_seen, quota - n_important)
        rest = valid & (place >= 0) & (place < n_rest.gather(-1, image))
        most = int(n_rest.max())
        slot = torch.where(rest, image * most + place, 0)
        states = _by_image(tokens.hidden, slot, rest, (*n_rest.shape, most))  # [B M, R, D]
        n_each = (self.step * image_counts(image, valid) // _N_PAPER).clamp(min=self.step)
        n_rest, n_left = n_rest.flatten(), (quota - n_important).flatten()
        stays = distinct(_distances(states, n_rest), n_rest, n_left, n_each.flatten())
        return important | (rest & stays.view(len(valid), -1).gather(-1, slot))


def distinct(far: Tensor, n_tokens: Tensor, n_keep: Tensor, step: Tensor) -> Tensor:
    """[G, R] bool: ``n_keep`` tokens of each group that are left when repeats are removed.

    Args:
        far: [G, R, R] distances between the tokens of a group, the most important first.
        n_tokens: [G] int64 tokens of each group; the other columns are filler.
        n_keep: [G] int64, at most n_tokens.
        step: [G] int64 most tokens removed in one round.
    """
    group = torch.arange(len(far), device=far.device)[:, None, None]
    left = torch.arange(far.shape[-1], device=far.device).expand(far.shape[:2])
    while bool((n_tokens > n_keep).any()):
        alive = torch.arange(left.shape[-1], device=left.device) < n_tokens[:, None]
        first, second = left[:, ::2], left[:, 1::2]
        between = far[group, first[:, :, None], second[:, None, :]]
        between = between.masked_fill(~alive[:, None, 1::2], torch.inf)
        nearest = between.amin(-1) if second.shape[-1] else between.new_zeros(first.shape)
        n_out = torch.minimum(n_tokens - n_keep, alive[:, ::2].sum(-1)).minimum(step)
        turn = ranks(-nearest.flip(-1), alive[:, ::2].flip(-1)).flip(-1)  # of equals the last goes
        alive[:, ::2] &= turn >= n_out[:, None]
        n_tokens = n_tokens - n_out
        order = (~alive).to(torch.uint8).argsort(dim=-1, stable=True)
        left = left.gather(-1, order[:, : int(n_tokens.max())])
    stays = torch.arange(left.shape[-1], device=left.device) < n_tokens[:, None]
    return torch.zeros_like(far[..., 0], dtype=torch.bool).scatter(-1, left, stays)


def _distances(states: Tensor, n_tokens: Tensor) -> Tensor:
    """[G, R, R] cosine distances within the groups of [G, R, D]; 0 on filler."""
    found = states.new_zeros(
        *states.shape[:2], states.shape[1], dtype=torch.promote_types(states.dtype, torch.float32)
    )
    for group, n in enumerate(n_tokens.tolist()):
        found[group, :n, :n] = all_distances(directions(states[group, :n]))
    return found


def _by_image(states: Tensor, slot: Tensor, taken: Tensor, shape: tuple[int, int, int]) -> Tensor:
    n_rows, n_images, n_tokens = shape
    place = torch.arange(slot.shape[-1], device=slot.device).expand_as(slot)
    table = slot.new_zeros(n_rows, n_images * n_tokens + 1)
    table.scatter_(-1, slot.masked_fill(~taken, n_images * n_tokens), place)
    return take(states, table[:, :-1]).view(n_rows * n_images, n_tokens, -1)
