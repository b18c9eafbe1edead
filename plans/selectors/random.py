"""random: keep tokens drawn by lot; the baseline that sees nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tpcal.plans.selectors.base import ScoredSelector, Tokens, whole

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Random(ScoredSelector):
    """Draws by a hash of seed, layer and a token's place among the original ones.

    The same place draws the same lot in every row, batch and padding, and no two places of a row
    draw the same; fewer tokens at the same layer are a subset of more.

    Needs:   nothing
    Cost:    O(B N)
    Source:  none; the mixing constants are those of the 32-bit finaliser "lowbias32"
             (Wellons 2018, public domain)
    """

    seed: int = whole(0, low=0)
    """Another seed, another draw."""

    def score(self, tokens: Tokens) -> Tensor:
        """[B, N] int64 lots in 0..2^32 - 1."""
        salt = _mixed(tokens.index.new_tensor([self.seed & _WORD]))
        salt = _mixed((salt + tokens.layer) & _WORD)
        return _mixed((tokens.index + salt) & _WORD)


def _mixed(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD  # int64 wraps, its low word is still exact
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)
