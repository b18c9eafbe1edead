"""random: keep tokens drawn at random; the baseline that uses no information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from tpcal.plans.selectors.base import ScoredSelector, Tokens, whole

_WORD = 0xFFFFFFFF
Mixed = TypeVar("Mixed", int, Tensor)


@dataclass(frozen=True)
class Random(ScoredSelector):
    """Keeps the tokens with the largest hash of seed, layer and original index.

    The same index has the same hash in every row, batch and padding, and no two tokens of a row
    have the same hash. With the same seed and layer, a smaller count keeps a subset of a larger
    one.

    Needs:   nothing
    Cost:    O(B N)
    Source:  none; the mixing constants are those of the 32-bit finaliser "lowbias32"
             (Wellons 2018, public domain)
    """

    seed: int = whole(0, low=0)
    """Seed of the hash."""

    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] int64 hashes in 0..2^32 - 1: mix(index + mix(mix(seed) + layer)) mod 2^32.

        ``mix`` is a bijection of 32-bit numbers, so that different indices never collide.
        """
        salt = _mixed((_mixed(self.seed & _WORD) + tokens.layer) & _WORD)
        return _mixed((tokens.index + salt) & _WORD)


def _mixed(x: Mixed) -> Mixed:
    # Each step is invertible modulo 2^32: x ^ (x >> s), and the product with an odd constant.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD  # int64 overflows, but its low 32 bits are exact
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
