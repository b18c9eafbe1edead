"""visionzip: keep the tokens the vision tower attends to; merge others into evenly spread ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._merging import mean_states, take
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    counts_of,
    fraction,
    image_counts,
    image_quotas,
    n_kept,
    ranks,
    scored,
    unit,
)


@dataclass(frozen=True)
class Visionzip(Selector):
    """Keeps dominant tokens, by the vision tower's attention, and contextual tokens.

    Each view keeps its share of ``n_keep``. Contextual tokens are evenly spaced among those that
    are not dominant. Every pruned token is merged into the contextual token of its view with the
    most similar keys (cosine): a contextual token becomes the mean of itself and the tokens merged
    into it. Tokens without patches (newlines) are never merged, and are pruned first. ``flops``
    does not count the products of keys, which are as wide as one head of the tower.

    Needs:   vision
    Cost:    O(B N log N) to choose, O(B N C E) for C contextual tokens and O(B N D) to merge
    Source:  Yang et al. 2024, arXiv 2412.04467 (VisionZip), inside the vision tower and with a
             fixed count for each image. The released code uses the integer step n // C, so that
             no contextual token is among the last tokens; here they are spread over all. It adds
             the mean of the merged tokens to the contextual token; here the contextual token is
             part of the mean, because the decoder would see a sum as a state of twice the length.
    """

    required: ClassVar[frozenset[str]] = frozenset({"vision"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"contextual_share": (0.0, 0.5)}

    contextual_share: float = fraction(0.15625)
    """Share of a view's kept tokens that are contextual, rounded down; 10 of 64 in the paper."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        counts = counts_of(tokens, n_keep)
        if not any(counts.n_tokens):
            return torch.zeros_like(tokens.valid)
        quota = image_quotas(tokens.image.clamp(min=0), tokens.valid, n_keep, counts.images)
        dominant, contextual = self._kinds(tokens, quota)
        return dominant | contextual

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        most = n_kept(tokens, stays)
        if not most:
            return None
        n_images = None if tokens.counts is None else tokens.counts.images
        quota = image_counts(tokens.image.clamp(min=0), stays, n_images)
        # Each pruned token i goes into argmax_c cos(k_i, k_c) over its image's contextual tokens
        # c; then h_c becomes the mean of h_c and all h_i that go into c.
        _, contextual = self._kinds(tokens, quota)
        n_targets = math.floor(self.contextual_share * most)
        merges = tokens.valid & ~stays & _seen(tokens)
        place = torch.arange(stays.shape[-1], device=stays.device).expand_as(stays)
        into = torch.where(merges, nearest(tokens, contextual & _seen(tokens), n_targets), -1)
        return mean_states(tokens.hidden, torch.where(stays, place, into), most)

    def _kinds(self, tokens: Tokens, quota: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] bool masks of dominant and contextual tokens, by the images' quotas [B, M]."""
        assert tokens.vision_scores is not None, "vision was not provided"
        # Step 1: an image with quota k has C = floor(share k) contextual tokens, and k - C
        # dominant ones.
        image, valid = tokens.image.clamp(min=0), tokens.valid
        n_images = quota.shape[-1]
        group = None if n_images == 1 else image
        n_contextual = (self.contextual_share * quota.double()).floor().long()
        n_dominant = quota - n_contextual
        # Step 2: the dominant tokens are those with the largest attention of the vision tower.
        by_score = ranks(tokens.vision_scores, valid, group)
        dominant = valid & (by_score < n_dominant.gather(-1, image))
        # Step 3: number the n other tokens p = 0, 1, ... in reading order, those without patches
        # last. The contextual tokens are those with p C mod n < C, where floor(p C / n) increases:
        # exactly C of them, at equal steps.
        rest, seen = valid & ~dominant, _seen(tokens)
        n_open = image_counts(image, rest & seen, n_images)
        n_open = torch.maximum(n_open, n_contextual).gather(-1, image).clamp(min=1)
        n_picks = n_contextual.gather(-1, image)
        place = ranks(seen.long(), rest, group).masked_fill(~rest, 0)  # without patches: the last
        return dominant, rest & (place < n_open) & (place * n_picks % n_open < n_picks)


def nearest(tokens: Tokens, targets: Tensor, n_targets: int) -> Tensor:
    """[B, N] index of the target of the same image with the most similar keys; -1 if it has none.

    Args:
        tokens: The candidates.
        targets: [B, N] bool.
        n_targets: At least the largest number of targets in a row.
    """
    assert tokens.vision_keys is not None, "vision was not provided"
    if not n_targets:
        return torch.full_like(tokens.index, -1)
    # A stable sort of the negated mask lists the targets' indices first, in ascending order.
    place = (~targets).to(torch.uint8).argsort(dim=-1, stable=True)[:, :n_targets]  # [B, C]
    keys = unit(tokens.vision_keys)
    chosen = take(keys, place)
    cosine = scored(keys @ chosen.mT, tokens.vision_keys)  # [B, N, C]
    fits = tokens.image[..., None] == tokens.image.gather(1, place)[:, None]
    fits &= targets.gather(1, place)[:, None]
    best, at = cosine.masked_fill(~fits, -torch.inf).max(dim=-1)
    return place.gather(1, at).masked_fill(best == -torch.inf, -1)


def _seen(tokens: Tokens) -> Tensor:
    assert tokens.vision_scores is not None, "vision was not provided"
    return tokens.vision_scores != -torch.inf
