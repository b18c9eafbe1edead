"""vispruner: keep the tokens the vision tower attends to, and the least redundant others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from tpcal.plans.selectors import _fused
from tpcal.plans.selectors._cosine import all_distances, directions
from tpcal.plans.selectors._counts import Counts
from tpcal.plans.selectors._merging import take
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    Work,
    counts_of,
    fraction,
    image_counts,
    image_quotas,
    pair_flops,
    ranks,
    whole,
)

_N_PAPER = 576  # number of tokens of an image in the paper
_FAR = 4.0  # more than any distance


@dataclass(frozen=True)
class Vispruner(Selector):
    """Keeps important tokens, by the vision tower's attention, and removes redundant others.

    Each view keeps its share of ``n_keep``. The tokens that are not important, in descending
    order of attention, are split into those at even and those at odd places. The ``step`` tokens
    at even places that are most similar to a token at an odd place are removed, and this repeats
    until the count is reached. Of equally similar tokens the one with less attention is removed.
    Tokens without patches (newlines) are removed first.

    Needs:   vision, hidden states
    Cost:    O(B N^2 D) for all pairs of a view, then (N - K) / step rounds of O(B N^2 / 4)
    Source:  Zhang et al. 2024, arXiv 2412.01818 (VisPruner), on the vision tower's output and
             before the decoder; tpcal compares the states at the cut. The released code sorts the
             tokens again after each round; here they stay in order of attention, and a view with
             more tokens takes as many rounds as one with 576.
    """

    required: ClassVar[frozenset[str]] = frozenset({"vision"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"important_share": (0.0, 1.0)}

    important_share: float = fraction(0.5)
    """Share of a view's kept tokens that are picked by attention, rounded down."""
    step: int = whole(8, low=1)
    """Largest number of tokens removed in one round from a view of up to 576 tokens; it grows in
    proportion to the size of larger views."""

    def flops(self, work: Work) -> float:
        """FLOPs of the distances between all tokens that attention does not pick, in one image."""
        n_rest = work.n_tokens - math.floor(self.important_share * work.n_keep)
        return pair_flops(n_rest, replace(work, n_tokens=n_rest))

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        scores, valid = tokens.vision_scores, tokens.valid
        assert scores is not None, "vision was not provided"
        counts = counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(valid)
        # Step 1: an image with quota k keeps its floor(share k) tokens of the largest attention.
        image = tokens.image.clamp(min=0)
        group = None if counts.images == 1 else image
        quota = image_quotas(image, valid, n_keep, counts.images)  # [B, M]
        n_important = (self.important_share * quota.double()).floor().long()
        place = ranks(scores, valid, group) - n_important.gather(-1, image)  # among the rest
        important = valid & (place < 0)
        # Step 2: the other tokens with patches compete for the remaining k - floor(share k)
        # places. Tokens without patches rank last, and compete only if there are too few others.
        n_seen = image_counts(image, valid & (scores != -torch.inf), counts.images) - n_important
        n_rest = torch.maximum(n_seen, quota - n_important)
        rest = valid & (place >= 0) & (place < n_rest.gather(-1, image))
        # Step 3: their states, [images, tokens, D] in order of attention, and the rounds that
        # remove redundant ones. A larger image removes step n / 576 tokens a round.
        n_each = (self.step * image_counts(image, valid, counts.images) // _N_PAPER).clamp(
            min=self.step
        )
        groups = Groups(*(n.flatten() for n in (n_rest, quota - n_important, n_each)))
        sizes = (
            groups.read()
            if counts.images > 1 or image.device.type == "cpu"
            else self._sizes(counts)
        )
        most = max((n for n, _, _ in sizes), default=0)
        slot = torch.where(rest, image * most + place, 0)
        states = _by_image(tokens.hidden, slot, rest, (*n_rest.shape, most))  # [B M, R, D]
        stays = distinct(_distances(states, [n for n, _, _ in sizes]), groups, widths(sizes))
        return important | (rest & stays.reshape(len(valid), -1).gather(-1, slot))

    def _sizes(self, counts: Counts) -> list[tuple[int, int, int]]:
        """The numbers of `Groups` for rows of one image, if all its tokens have patches."""
        sizes = []
        for n_tokens, n_keep in zip(counts.n_tokens, counts.n_keep, strict=True):
            n_important = math.floor(self.important_share * n_keep)
            step = max(self.step, self.step * n_tokens // _N_PAPER)
            sizes.append((n_tokens - n_important, n_keep - n_important, step))
        return sizes


@dataclass(frozen=True)
class Groups:
    """Numbers of groups of tokens; each is [G] int64."""

    n_tokens: Tensor
    """Tokens of each group."""
    n_keep: Tensor
    """How many of them remain; at most ``n_tokens``."""
    step: Tensor
    """Largest number of tokens removed in one round."""

    def read(self) -> list[tuple[int, int, int]]:
        """The numbers of each group, on the host; waits for the device once."""
        table = torch.stack((self.n_tokens, self.n_keep, self.step), dim=-1).tolist()
        return [(n, k, step) for n, k, step in table]


def widths(sizes: Sequence[tuple[int, int, int]]) -> list[int]:
    """Largest number of tokens that a group has after each round.

    Args:
        sizes: Number of tokens, number that remains, and step of each group. More tokens than a
            group has are allowed: its numbers stay below those of the larger group.
    """
    found = []
    left = list(sizes)
    while any(n > k for n, k, _ in left):
        left = [(n - min(n - k, (n + 1) // 2, step), k, step) for n, k, step in left]
        found.append(max(n for n, _, _ in left))
    return found


def distinct(far: Tensor, groups: Groups, widths: Sequence[int]) -> Tensor:
    """[G, R] bool: the tokens of each group that remain after redundant ones go.

    Args:
        far: [G, R, R] distances between the tokens of a group, the most important token first.
        groups: Numbers of tokens of each group; later columns are filler.
        widths: At least the largest number of tokens of a group after each round.
    """
    n_tokens = remaining(groups, len(widths))
    if _fused.available(far):
        return _fused.distinct(far, n_tokens)
    # `left` lists the remaining tokens of each group, the most important first, and after them a
    # token that only fills: it is farther from all others than any of them, and never removed.
    n_most = far.shape[-1]
    far = pad(pad(far + 0.0, (0, 1), value=_FAR), (0, 0, 0, 1), value=torch.inf)  # no -0.0
    place = torch.arange(n_most, device=far.device)
    group = torch.arange(len(far), device=far.device)
    from_end = n_most - 1 - place
    left = torch.where(place < n_tokens[0, :, None], place, n_most)
    for n_out, width in zip(n_tokens[:-1] - n_tokens[1:], widths, strict=True):
        # Step 1: split by parity, a = places 0, 2, ... and b = places 1, 3, ..., and compute for
        # every a its distance to the most similar b: near(a) = min over b of d(a, b).
        first, second = left[:, ::2], left[:, 1::2]
        between = far[group[:, None, None], first[:, :, None], second[:, None, :]]
        nearest = between.amin(-1) if second.shape[-1] else between.new_zeros(first.shape)
        # Step 2: remove the n_out tokens with the smallest near(a). They are the last of this
        # order, in which the least important of equal tokens comes last.
        order = nearest.argsort(dim=-1, descending=True, stable=True)
        stays = from_end[-order.shape[-1] :] >= n_out[:, None]
        first = torch.where(stays, first.gather(-1, order), n_most)
        # Step 3: close the gaps and keep the order by importance; many tokens change parity.
        left = torch.cat((first, second), dim=-1).sort(dim=-1).values[:, :width]
    kept = torch.zeros(*far.shape[:2], dtype=torch.bool, device=far.device)
    return kept.scatter_(-1, left, True)[:, :-1]


def remaining(groups: Groups, n_rounds: int) -> Tensor:
    """[n_rounds + 1, G] int64: tokens of each group before the first round and after each."""
    # A round leaves max(k, n - step, floor(n / 2)) of n tokens. The second is the larger of the
    # last two while n >= 2 step - 1, in the first `n_whole` rounds; later ones halve.
    n, step = groups.n_tokens, groups.step
    n_whole = ((n - 2 * step + 1) // step + 1).clamp(min=0)
    turn = torch.arange(n_rounds + 1, device=n.device)[:, None]
    whole = torch.minimum(turn, n_whole)
    return torch.maximum((n - whole * step) >> (turn - whole).clamp(max=62), groups.n_keep)


def _distances(states: Tensor, n_tokens: Sequence[int]) -> Tensor:
    """[G, R, R] cosine distances between the states [G, R, D] of each group; 0 on filler."""
    found = states.new_zeros(
        *states.shape[:2], states.shape[1], dtype=torch.promote_types(states.dtype, torch.float32)
    )
    for group, n in enumerate(n_tokens):
        found[group, :n, :n] = all_distances(directions(states[group, :n]))
    return found


def _by_image(states: Tensor, slot: Tensor, taken: Tensor, shape: tuple[int, int, int]) -> Tensor:
    n_rows, n_images, n_tokens = shape
    place = torch.arange(slot.shape[-1], device=slot.device).expand_as(slot)
    table = slot.new_zeros(n_rows, n_images * n_tokens + 1)
    table.scatter_(-1, slot.masked_fill(~taken, n_images * n_tokens), place)
    return take(states, table[:, :-1]).view(n_rows * n_images, n_tokens, -1)
