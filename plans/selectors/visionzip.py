"""visionzip: keep what the vision tower attends to; merge the rest into evenly spread tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tpcal.plans.selectors._merging import mean_states, take
from tpcal.plans.selectors.base import (
    Selector,
    Tokens,
    fraction,
    image_counts,
    image_quotas,
    ranks,
    scored,
    unit,
)


@dataclass(frozen=True)
class Visionzip(Selector):
    """Dominant tokens by the vision tower's attention, contextual ones that take in the others.

    Each image has its share of ``n_keep``. Contextual tokens stand at equal steps among those that
    are not dominant; every token that leaves goes into the contextual one of its image whose keys
    are most like its own (cosine), and a contextual token becomes the mean of itself and these.
    Tokens without patches (newlines) take in nothing, are taken in by none, and leave first.
    ``flops`` leaves the products of keys out: they are as wide as one head of the tower.

    Needs:   vision
    Cost:    O(B N log N) to choose, O(B N C E) for C contextual tokens and O(B N D) to merge
    Source:  Yang et al. 2024, arXiv 2412.04467 (VisionZip), there inside the vision tower, at a
             fixed count for each image. The released code steps by the whole number n // C and so
             leaves the last tokens without a contextual one; ours are spread over all. It adds the
             mean of the merged tokens to the contextual one; ours takes the mean with it, because
             the decoder would see a sum as a state of twice the length.
    """

    required: ClassVar[frozenset[str]] = frozenset({"vision"})
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"contextual_share": (0.0, 0.5)}

    contextual_share: float = fraction(0.15625)
    """Share of an image's tokens that are contextual, rounded down: 10 of 64 in the paper."""

    def select(self, tokens: Tokens, n_keep: Tensor) -> Tensor:
        if not tokens.valid.any():
            return torch.zeros_like(tokens.valid)
        quota = image_quotas(tokens.image.clamp(min=0), tokens.valid, n_keep)
        dominant, contextual = self._kinds(tokens, quota)
        return dominant | contextual

    def merged(self, tokens: Tokens, stays: Tensor) -> Tensor | None:
        if not stays.any():
            return None
        quota = image_counts(tokens.image.clamp(min=0), stays)
        _, contextual = self._kinds(tokens, quota)
        merges = tokens.valid & ~stays & _seen(tokens)
        place = torch.arange(stays.shape[-1], device=stays.device).expand_as(stays)
        into = torch.where(merges, nearest(tokens, contextual & _seen(tokens)), -1)
        return mean_states(tokens.hidden, torch.where(stays, place, into))

    def _kinds(self, tokens: Tokens, quota: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N] bool dominant and contextual tokens; ``quota`` [B, M] of each image."""
        assert tokens.vision_scores is not None, "vision was not provided"
        image, valid = tokens.image.clamp(min=0), tokens.valid
        n_contextual = (self.contextual_share * quota.double()).floor().long()
        n_dominant = quota - n_contextual
        by_score = ranks(tokens.vision_scores, valid, image)
        dominant = valid & (by_score < n_dominant.gather(-1, image))
        rest, seen = valid & ~dominant, _seen(tokens)
        n_open = image_counts(image, rest & seen)
        n_open = torch.maximum(n_open, n_contextual).gather(-1, image).clamp(min=1)
        n_picks = n_contextual.gather(-1, image)
        place = ranks(seen.long(), rest, image).masked_fill(~rest, 0)  # without patches: the last
        return dominant, rest & (place < n_open) & (place * n_picks % n_open < n_picks)


def nearest(tokens: Tokens, targets: Tensor) -> Tensor:
    """[B, N] place of the target [B, N] bool of the same image with the most alike keys; or -1."""
    assert tokens.vision_keys is not None, "vision was not provided"
    n_targets = int(targets.sum(-1).max())
    if not n_targets:
        return torch.full_like(tokens.index, -1)
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
